"""The head that turns features into one score: linear layers one after the other, with nothing between them.

ImageReward and LAION's aesthetic predictor train with dropout between the layers and no activation, so what is left at
scoring is a chain of matrices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn


class LinearHead(nn.Sequential):
    """Features (N, D) to scores (N, 1)."""

    def __init__(self, widths: Sequence[int]) -> None:
        """`widths` are those of the features, of what lies between the layers, and of the score (1)."""
        super().__init__(*(nn.Linear(before, after) for before, after in pairwise(widths)))


def renumbered(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The head's tensors under `prefix`, its layers counted from 0; the originals count the dropout between too."""
    numbers = sorted({int(key.removeprefix(prefix).partition(".")[0]) for key in _of(tensors, prefix)})
    return {
        f"{numbers.index(int(number))}.{kind}": tensors[key]
        for key in _of(tensors, prefix)
        for number, _, kind in [key.removeprefix(prefix).partition(".")]
    }


def head_widths(head: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The widths of a head, its layers counted from 0. Raises ValueError if the layers do not follow one another."""
    num_layers = len({key.partition(".")[0] for key in head})
    weights = [head.get(f"{i}.weight") for i in range(num_layers)]
    biases = [head.get(f"{i}.bias") for i in range(num_layers)]
    shapes = [tuple(weight.shape) for weight in weights if weight is not None and weight.ndim == 2]
    follow = all(before[0] == after[1] for before, after in pairwise(shapes))
    fits = all(bias is not None and tuple(bias.shape) == shape[:1] for bias, shape in zip(biases, shapes, strict=False))
    if not shapes or len(shapes) != num_layers or not follow or not fits or shapes[-1][0] != 1:
        raise ValueError("its layers are no chain of linear layers that ends in one score")
    return (shapes[0][1], *(shape[0] for shape in shapes))


def _of(tensors: Mapping[str, Tensor], prefix: str) -> Iterable[str]:
    return [key for key in tensors if key.startswith(prefix)]
