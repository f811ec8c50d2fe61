"""Images as a vision encoder wants them: resized, cropped and normalised as the original code of each reward does it.

The originals differ in two points that move scores. Most resize uint8 images with PIL, which rounds to whole levels;
HPSv2 resizes floats with torch, which neither rounds nor clips. And where an odd number of pixels is cropped away,
transformers rounds the offset down, torchvision to the nearest (halves to the even one).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from engine.rewards.base import Pixels

FILE_NAME = "preprocessor_config.json"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = int(Image.Resampling.BICUBIC)
_SUPPORTED = {"do_resize": True, "do_rescale": True, "do_normalize": True}


@dataclass(frozen=True)
class Preprocessing:
    """From uint8 images of any size to an encoder's pixel values.

    Attributes:
        height, width: of the result, in pixels.
        short_side: what the shorter side is resized to before the crop; None = squeezed to height × width, no crop.
        mean, std: of each channel, on a scale from 0 to 1.
        resample: PIL's number of the filter.
        resizes_floats: as HPSv2 does, always bicubic with antialiasing.
        rounds_offset: to the nearest pixel as torchvision does; else down as transformers does.
    """

    height: int
    width: int
    short_side: int | None
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resample: int = BICUBIC
    resizes_floats: bool = False
    rounds_offset: bool = False

    def __call__(self, images: Pixels) -> Tensor:
        """Pixel values (N, 3, height, width), float32, of uint8 images (N, H, W, 3)."""
        resized = self._resized(images)
        if self.short_side is not None:
            resized = self._cropped(resized)
        mean, std = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (resized - mean) / std

    def _resized(self, images: Pixels) -> Tensor:
        """Images (N, 3, h, w) between 0 and 1, resized."""
        height, width = self._resized_size(*images.shape[1:3])
        if self.resizes_floats:
            floats = _as_floats(images)
            if floats.shape[2:] == (height, width):
                return floats
            return functional.interpolate(floats, size=(height, width), mode="bicubic", antialias=True)
        resample = Image.Resampling(self.resample)
        return _as_floats(
            np.stack([np.asarray(Image.fromarray(image).resize((width, height), resample)) for image in images])
        )

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        if self.short_side is None:
            return self.height, self.width
        long_side = int(self.short_side * max(height, width) / min(height, width))
        return (long_side, self.short_side) if width <= height else (self.short_side, long_side)

    def _cropped(self, images: Tensor) -> Tensor:
        spare = images.shape[2] - self.height, images.shape[3] - self.width
        top, left = (round(number / 2) if self.rounds_offset else number // 2 for number in spare)
        return images[:, :, top : top + self.height, left : left + self.width]

    def write(self, folder: Path) -> None:
        """Write it as transformers does, with two keys of our own for what transformers does one way only."""
        size = {"height": self.height, "width": self.width}
        data = {
            "image_processor_type": "CLIPImageProcessor",
            **_SUPPORTED,
            "size": size if self.short_side is None else {"shortest_edge": self.short_side},
            "do_center_crop": self.short_side is not None,
            "crop_size": size,
            "image_mean": self.mean,
            "image_std": self.std,
            "resample": self.resample,
            "resizes_floats": self.resizes_floats,
            "rounds_offset": self.rounds_offset,
        }
        (folder / FILE_NAME).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def read_preprocessing(path: Path) -> Preprocessing:
    """What a `preprocessor_config.json` says. Raises ValueError where it asks for something that is not done here."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key, wanted in _SUPPORTED.items():
            if data.get(key, wanted) is not wanted:
                raise ValueError(f"it sets {key} to {data[key]}")
        height, width, short_side = _sizes(data)
        return Preprocessing(
            height, width, short_side, tuple(data.get("image_mean", CLIP_MEAN)), tuple(data.get("image_std", CLIP_STD)),
            data.get("resample", BICUBIC), data.get("resizes_floats", False), data.get("rounds_offset", False),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no image preprocessing that Palate knows ({error}).") from error


def _sizes(data: Mapping[str, Any]) -> tuple[int, int, int | None]:
    """Height and width of the result, and the short side before the crop (None = no crop)."""
    size = data.get("size", {"shortest_edge": 224})
    if isinstance(size, Mapping) and "height" in size:
        if data.get("do_center_crop", True) and _pair(data.get("crop_size", size)) != _pair(size):
            raise ValueError("it squeezes images to one size and crops another")
        return *_pair(size), None
    short_side = size["shortest_edge"] if isinstance(size, Mapping) else int(size)
    height, width = _pair(data.get("crop_size", short_side))
    if not data.get("do_center_crop", True) or max(height, width) > short_side:
        raise ValueError("it leaves images in shapes that differ")
    return height, width, short_side


def _pair(size: Any) -> tuple[int, int]:
    return (int(size["height"]), int(size["width"])) if isinstance(size, Mapping) else (int(size), int(size))


def _as_floats(images: Pixels) -> Tensor:
    """(N, 3, H, W) between 0 and 1, of uint8 (N, H, W, 3)."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div(255)
