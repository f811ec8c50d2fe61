"""AdamW, with its moments in 32 bits or in 8 (2110.02861), and its state as named tensors for checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.extras import missing_extra
from engine.settings import OptimiserSettings
from engine.sharding import kept_copy, parted

_STEP = "step"


def make_optimiser(parameters: Iterable[nn.Parameter], options: OptimiserSettings) -> Optimizer:
    """AdamW over these weights. Raises ValueError, saying what to install, if a package is missing."""
    rate, decay = options.learning_rate, options.weight_decay
    if options.name == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    try:
        from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415 - an extra, for this alone
    except ImportError as error:
        raise missing_extra('optimiser.name "adamw_8bit"', "quantisation", error) from error
    return AdamW8bit(parameters, lr=rate, weight_decay=decay)


def optimiser_tensors(optimiser: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Copies of its state as `<weight>/<entry>`: `exp_avg`, `exp_avg_sq` and `step`; in 8 bits bitsandbytes' own."""
    return {
        f"{name}/{entry}": kept_copy(value) if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in parameters.items()
        for entry, value in optimiser.state.get(parameter, {}).items()
    }


def restore_optimiser(
    optimiser: Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Set its state to that of `optimiser_tensors`, on the weights' devices, in parts where they are."""
    counts_in_tensors = isinstance(optimiser, torch.optim.AdamW)
    for key, value in tensors.items():
        name, entry = key.rsplit("/", 1)
        parameter = parameters[name]
        if entry == _STEP:
            restored: Tensor | int = value if counts_in_tensors else int(value)
        else:
            restored = parted(value.to(parameter.device), parameter)
        optimiser.state[parameter][entry] = restored
