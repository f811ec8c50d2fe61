"""What the original code and ours are both given: images, prompts, a small vocabulary, and random weights by name."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FOLDER = Path(__file__).parent
# Chelsea the cat, CC0 by Stéfan van der Walt, from scikit-image's data; 451 × 300 pixels, as a JPEG of quality 85.
PHOTOGRAPH = FOLDER / "photograph.jpg"
PROMPTS = (
    "a photo of a cat",
    "A red circle, left of 2 blue squares; it's bright!",
    " an  oil painting of the sea at night, with stars, clouds, boats and a lighthouse on the cliffs above the waves "
    "and a small village beneath it where the lamps are lit and people walk home in the rain under wide umbrellas",
)
# What the code of open_clip mends in a prompt, or reads otherwise than transformers.
UNMENDED = (
    "a “red” circle, it’s bright &amp;amp; square",
    "ｗｉｄｅ　ｌｅｔｔｅｒｓ，ﬁne ligatures",
    "a schÃ¶n square, cafe\u0301",
    "Ο ΚΥΚΛΟΣ ΕΙΝΑΙ ΚΟΚΚΙΝΟΣ",
    "red <|endoftext|> circle",
)
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
PIECES = ("cat", "photo", "red", "circle", "left", "blue", "square", "bright", "oil", "painting", "##ing", "of")
BERT_VOCABULARY = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(i) for i in range(33, 127) if not chr(i).isupper()),
    *(f"##{chr(i)}" for i in range(97, 123)), *PIECES,
)  # fmt: skip


def images() -> tuple[np.ndarray, np.ndarray]:
    """Two batches of three uint8 images: the photograph and two changes of it, and tall noise from a seed."""
    photograph = np.asarray(Image.open(PHOTOGRAPH).convert("RGB"))
    noise = np.random.default_rng(0).integers(0, 256, (3, 97, 61, 3), dtype=np.uint8)
    return np.stack([photograph, photograph[::-1], 255 - photograph]), noise


def weights(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """Random weights by name, of sizes at which every part of a model moves its score."""
    return {name: torch.from_numpy(_weight(name, tuple(shape), seed)) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    drawn = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape).astype(np.float32)
    if shape == ():
        return np.array(np.log(100.0), dtype=np.float32)  # a temperature
    if len(shape) == 1 and name.endswith(".weight"):
        return 1 + np.float32(0.2) * drawn  # of a norm
    if name.endswith("bias"):
        return np.float32(0.2) * drawn
    if ("embed" in name and len(shape) != 4) or "cls_token" in name:
        return np.float32(0.5) * drawn
    return drawn * np.float32(1.5 / np.sqrt(np.prod(shape[1:])))


def byte_symbols() -> list[str]:
    """The 256 characters that CLIP's vocabulary begins with: bytes that print as themselves, then the others."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    return [chr(byte) for byte in printing] + [chr(256 + i) for i in range(len(others))]


def clip_vocabulary(merges: Sequence[Sequence[str]]) -> dict[str, int]:
    """CLIP's vocabulary of these merges: bytes, bytes that end a word, merged pieces, start and end."""
    symbols = byte_symbols()
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair) for pair in merges), *SPECIAL_TOKENS]
    return {word: i for i, word in enumerate(words)}
