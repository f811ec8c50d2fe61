"""Texts of unequal length, told apart from their padding by a mask."""

from __future__ import annotations

from torch import Tensor


def cut_padding(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (P, L, D) and their mask (P, L), shorter by the padding that all of them end with; other padding is 0.

    So a prompt has the same tokens alone as beside longer ones. Exact where the transformer heeds no masked token. One
    token is left where the mask has none.
    """
    used = mask.bool().any(dim=0).nonzero()
    length = int(used.max()) + 1 if len(used) else 1
    kept = mask[:, :length]
    return tokens[:, :length] * kept[..., None].to(tokens.dtype), kept
