"""Which steps each image is trained at."""

from __future__ import annotations

import torch

from engine.objective.base import choose_steps


def test_every_image_gets_as_many_steps_of_its_own_choice():
    chosen = choose_steps(24, 500, 14, torch.Generator().manual_seed(0))
    assert chosen.shape == (24, 500)
    assert set(chosen.sum(0).tolist()) == {14}
    assert len({tuple(column.tolist()) for column in chosen.t()}) == 500
    # 14 of 24 of 500 images: 292 expected at each step, standard deviation 11.
    assert all(245 < count < 340 for count in chosen.sum(1).tolist())


def test_all_steps_need_no_draw():
    generator = torch.Generator().manual_seed(0)
    assert choose_steps(4, 3, 4, generator).all()
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())
