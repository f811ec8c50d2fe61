"""How long a run will take, as it says itself when it starts."""

from __future__ import annotations

import torch

from engine.catalogue.gpus import find_gpu
from engine.model_size import read_size
from engine.models import model_folder
from engine.settings import RunSettings
from engine.time_estimate import TOO_SMALL, cpu_speed, estimate_time, gpu_speed, in_words, is_too_small


def forecast(settings: RunSettings, device: torch.device) -> str:
    """A sentence or two, for the device."""
    size = read_size(model_folder(settings.model), settings)
    if device.type == "cpu":
        speed = cpu_speed(settings)
    elif is_too_small(size):
        return TOO_SMALL
    else:
        name = torch.cuda.get_device_name(device)
        gpu = find_gpu(name)
        if gpu is None:
            return f"How long it takes on an {name} is not known; the first iteration will tell."
        speed = gpu_speed(gpu, settings)
    return in_words(estimate_time(size, settings, speed), speed)
