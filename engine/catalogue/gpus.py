"""Facts about GPUs, by their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuInfo:
    """A GPU's peaks in dense matrix products, in TFLOP/s, and its memory in GiB.

    Attributes:
        name: what the name that its driver gives holds, such as "NVIDIA H100 80GB HBM3".
        bfloat16: by its tensor cores, summed in float32.
        float32: without tensor cores, as torch computes float32 unless told otherwise.
    """

    name: str
    bfloat16: float
    float32: float
    memory: int


# The first whose name a device's holds: the longer names before those that they hold.
GPUS: tuple[GpuInfo, ...] = (
    GpuInfo("GB200", 2500.0, 80.0, 186),
    GpuInfo("B200", 2250.0, 75.0, 180),
    GpuInfo("H200 NVL", 835.0, 60.0, 141),
    GpuInfo("H200", 989.4, 66.9, 141),
    GpuInfo("H100 PCIe", 756.0, 51.2, 80),
    GpuInfo("H100 NVL", 835.0, 60.0, 94),
    GpuInfo("H100", 989.4, 66.9, 80),
    GpuInfo("A100", 312.0, 19.5, 80),
    GpuInfo("L40S", 362.0, 91.6, 48),
    GpuInfo("L40", 181.0, 90.5, 48),
    GpuInfo("RTX 6000 Ada", 364.2, 91.1, 48),
    GpuInfo("A6000", 154.8, 38.7, 48),
    GpuInfo("RTX 5090", 209.5, 104.8, 32),
    GpuInfo("RTX 4090", 165.2, 82.6, 24),
    GpuInfo("RTX 3090", 71.0, 35.6, 24),
    GpuInfo("L4", 121.0, 30.3, 24),
)


def find_gpu(device: str) -> GpuInfo | None:
    """The GPU that a device's name says it is; None if it is none of these, as a laptop's is, of a smaller chip."""
    if "Laptop" in device:
        return None
    return next((gpu for gpu in GPUS if gpu.name in device), None)
