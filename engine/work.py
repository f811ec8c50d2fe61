"""How much work an iteration is: transformer forwards and trained steps, from the settings alone (free of torch).

F is one forward of the transformer for one image. The engine counts what it does and reports it; tests hold the counts
equal to these formulas, and the estimates of time are made of them. Where a function asks whether a model
`takes_guidance`, that is whether the guidance scale is an input of its transformer, as its configuration says
(engine/model_size.py): then a guided velocity is one forward, whatever others of the family take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from engine.catalogue import MODEL_INFO
from engine.sampling.window import position_shares
from engine.settings import RunSettings

# What training on one step costs, in F: forward, backward for the input, and for a full fine-tune for the weights too.
_TRAINING_COST = {"lora": 2.0, "full": 3.0}


@dataclass(frozen=True)
class Work:
    """One iteration's work, in forwards of one image.

    rollout: forwards that draw the images. reference: forwards, without gradient, of the policy an update is compared
    with (the base model for KL, the sampling policy for DiffusionNFT). trained_steps: image-steps trained on, if no
    advantage is zero. trained_forwards: forwards with gradient that they take. cost: all of it in F, a trained forward
    counted as 2 (LoRA) or 3 (full), 1 more if checkpointed.
    """

    rollout: float
    reference: float
    trained_steps: float
    trained_forwards: float
    cost: float


def num_tail_steps(steps_left: int, ratio: float) -> int:
    """Steps of the Flash tail that replaces `steps_left` steps: max(1, ⌈ratio·steps_left⌉) (MixGRPO-Flash)."""
    # In binary 0.55·20 is a hair above 11 and would round up to 12; the decimal the user wrote is what is meant.
    return max(1, math.ceil(Fraction(repr(float(ratio))) * steps_left))


def num_trained_steps(settings: RunSettings) -> int:
    """Steps each image is trained at: the window's trained share, or DiffusionNFT's noise levels."""
    if settings.method == "nft":
        return settings.nft.timesteps_per_image
    # 0.6 of 24 steps are 14: DanceGRPO rounds down.
    return max(1, math.floor(Fraction(repr(settings.window.trained_fraction)) * settings.window.size))


def work_at(settings: RunSettings, window_start: int, takes_guidance: bool = False) -> Work:
    """The work of an iteration with the window at `window_start` (MixGRPO, arXiv 2507.21802, section 3; P·G images)."""
    num_steps, grpo = settings.sampling.num_steps, settings.grpo
    num_images = grpo.prompts_per_iteration * grpo.group_size
    start, size = (0, 0) if settings.method == "nft" else (window_start, settings.window.size)
    tail = num_steps - start - size
    if settings.flash.enabled:
        tail = num_tail_steps(tail, settings.flash.ratio)
    prefix = start * (grpo.prompts_per_iteration if settings.sampling.shared_prefix else num_images)
    passes = num_passes(settings, settings.sampling.guidance_scale, takes_guidance)
    rollout = passes * (prefix + (size + tail) * num_images)
    trained = grpo.prompts_per_iteration * settings.num_trained_images * num_trained_steps(settings)
    # DiffusionNFT trains without guidance, whatever the images were drawn with.
    forwards = trained * (1 if settings.method == "nft" else passes)
    reference = forwards * _num_references(settings)
    each = _TRAINING_COST[settings.tuning.method] + settings.tuning.gradient_checkpointing
    return Work(rollout, reference, trained, forwards, rollout + reference + each * forwards)


def num_passes(settings: RunSettings, guidance_scale: float, takes_guidance: bool = False) -> int:
    """Transformer forwards a velocity takes: two with classifier-free guidance, else one."""
    by_forwards = MODEL_INFO[settings.model.name].classifier_free_guidance and not takes_guidance
    return 2 if guidance_scale > 1 and by_forwards else 1


def mean_work(settings: RunSettings, takes_guidance: bool = False) -> Work:
    """The work of an iteration, averaged over the window's positions as a long run visits them."""
    shares = position_shares(settings.window, settings.sampling.num_steps)
    parts = [(share, work_at(settings, start, takes_guidance)) for start, share in shares.items()]
    return Work(
        rollout=sum(share * work.rollout for share, work in parts),
        reference=sum(share * work.reference for share, work in parts),
        trained_steps=sum(share * work.trained_steps for share, work in parts),
        trained_forwards=sum(share * work.trained_forwards for share, work in parts),
        cost=sum(share * work.cost for share, work in parts),
    )


def num_evaluations(settings: RunSettings) -> int:
    """How often the held-out prompts are drawn: before the first iteration, every few, and after the last."""
    times, rest = divmod(settings.iterations, settings.evaluation.every)
    return 1 + times + (rest > 0)


def _num_references(settings: RunSettings) -> int:
    """Policies that each trained step is compared with."""
    if settings.method == "nft":
        return 1 + (settings.nft.base_weight > 0)
    return int(settings.grpo.kl_weight > 0)
