"""What a worker computes on, as far as can be told without torch."""

from __future__ import annotations

import os
from pathlib import Path


def device_here() -> str:
    """The worker's device: "cpu", or "cuda" with the numbers it may see and, where that is known, the GPU's name."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not (visible or (visible is None and Path("/dev/nvidia0").exists())):
        return "cpu"
    device = f"cuda:{visible}" if visible else "cuda"
    name = gpu_name()
    return f"{device} ({name})" if name else device


def gpu_name(folder: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """The name of the first GPU, as NVIDIA's driver tells it; "" where it does not, or where they differ."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*/information"))]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("Model:")]
    names = {line.removeprefix("Model:").strip() for line in lines}
    return names.pop() if len(names) == 1 else ""
