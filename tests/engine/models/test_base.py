"""Embeddings of prompts of different lengths side by side."""

from __future__ import annotations

import torch

from engine.models.base import PromptEmbeddings, stack_embeddings, stack_padded

CPU = torch.device("cpu")


def _encoded(length: int, value: float, empty_length: int = 1) -> PromptEmbeddings:
    return PromptEmbeddings(_text(length, value, value), _text(empty_length, -1.0, 0.0))


def _text(length: int, value: float, pooled: float) -> dict[str, torch.Tensor]:
    return {
        "tokens": torch.full((1, length, 3), value),
        "mask": torch.ones(1, length),
        "pooled": torch.full((1, 2), pooled),
    }


def test_shorter_texts_are_padded_with_zeros_and_their_masks_say_so() -> None:
    both = stack_embeddings([_encoded(2, 5.0), _encoded(4, 7.0)], CPU)
    assert both.texts["tokens"].shape == (2, 4, 3)
    assert both.texts["mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert (both.texts["tokens"][0, 2:] == 0).all() and (both.texts["tokens"][0, :2] == 5).all()
    assert both.texts["pooled"].tolist() == [[5, 5], [7, 7]]


def test_guided_rows_are_the_empty_prompts_then_the_prompts_own() -> None:
    both = stack_embeddings([_encoded(2, 5.0), _encoded(4, 7.0)], CPU)
    rows = both.guided_rows(torch.tensor([1, 0, 1]))
    assert rows["tokens"].shape == (6, 4, 3)
    assert rows["mask"].sum(1).tolist() == [1, 1, 1, 4, 2, 4]
    assert rows["tokens"][:, 0, 0].tolist() == [-1, -1, -1, 7, 5, 7]


def test_an_empty_prompt_longer_than_the_prompts_keeps_its_length() -> None:
    rows = _encoded(2, 5.0, empty_length=3).guided_rows(torch.tensor([0]))
    assert rows["mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_numbers_a_row_are_joined_as_they_are() -> None:
    assert stack_padded([torch.tensor([1, 2]), torch.tensor([3])]).tolist() == [1, 2, 3]
