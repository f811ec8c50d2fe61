"""Padding that every prompt has is cut; what some prompt uses stays."""

from __future__ import annotations

import torch

from engine.models.masks import cut_padding


def test_what_no_prompt_uses_is_cut_at_the_end_alone() -> None:
    tokens = torch.arange(1, 2 * 5 * 3 + 1).view(2, 5, 3)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 0, 0]])
    cut, of = cut_padding(tokens, mask)
    assert cut.shape == (2, 3, 3) and torch.equal(of, mask[:, :3])
    assert torch.equal(cut[of == 1], tokens[:, :3][of == 1]) and not cut[of == 0].any()


def test_of_texts_without_a_token_one_stays() -> None:
    cut, of = cut_padding(torch.ones(2, 5, 3), torch.zeros(2, 5, dtype=torch.long))
    assert cut.shape == (2, 1, 3) and of.shape == (2, 1)
