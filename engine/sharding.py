"""Weights held in parts by several ranks (FSDP2, `torch.distributed.fsdp`): full fine-tuning of what does not fit one.

Each rank keeps, updates and averages its part of every weight. A block's weights are put together while it runs,
forward and again backward, where the gradients of all ranks are added up. What does arithmetic on weights works on
parts as it does on whole tensors. Checkpoints hold whole ones, so a run may go on with another number of processes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from engine.ranks import Ranks


def shard(transformer: nn.Module, ranks: Ranks, device: torch.device) -> None:
    """Leave this rank its part of every weight, as float32 on the device, a block of the transformer at a time."""
    mesh = init_device_mesh(device.type, (ranks.world_size,))
    stacks = [child for child in transformer.children() if isinstance(child, nn.ModuleList)]
    for module in (*(block for stack in stacks for block in stack), transformer):
        # Put apart again after every forward, the outermost too: weights are replaced between two of them.
        fully_shard(module.float(), mesh=mesh, reshard_after_forward=True)
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            # A loss is already a mean over the images of all ranks: gradients are added, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def whole(tensor: Tensor) -> Tensor:
    """The tensor put together from all ranks' parts; itself if it is in one piece. Every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is held: this rank's part of it, or itself."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def kept_copy(tensor: Tensor) -> Tensor:
    """A copy to keep: on the CPU, where it costs no GPU memory; of a part, where the part is."""
    detached = tensor.detach()
    return detached.clone() if isinstance(tensor, DTensor) else detached.cpu().clone()
