"""What is changed in a plain diffusers pipeline before it draws what the engine draws, for families where it must be.

Beside the change stands its Python, for model cards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DPMSolverMultistepScheduler
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.loaders.lora_base import LoraBaseMixin

from engine.settings import ModelName


@dataclass(frozen=True)
class PlainSetup:
    """A change of a pipeline.

    Attributes:
        apply: makes it, for a guidance scale, where the pipeline needs it.
        code: the same as lines of Python about `pipe`, from the pipeline's folder; "" where it needs none.
    """

    apply: Callable[[Any, float], None]
    code: Callable[[Path, float], str]


def _euler_steps(pipeline: Any, _: float) -> None:
    """SANA's second-order solver at first order, which is Euler's."""
    if isinstance(pipeline.scheduler, DPMSolverMultistepScheduler):
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, solver_order=1)


def _euler_steps_code(folder: Path, _: float) -> str:
    if _read(folder / "model_index.json")["scheduler"][1] != DPMSolverMultistepScheduler.__name__:
        return ""
    return (
        "from diffusers import DPMSolverMultistepScheduler\n\n"
        "pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, solver_order=1)\n"
    )


def _plain_guider(pipeline: Any, guidance_scale: float) -> None:
    """HunyuanImage's guiders replaced by classifier-free guidance; a distilled one takes the scale as an input."""
    if not pipeline.transformer.config.guidance_embeds:
        pipeline.guider = pipeline.ocr_guider = ClassifierFreeGuidance(guidance_scale=guidance_scale)


def _plain_guider_code(folder: Path, guidance_scale: float) -> str:
    if _read(folder / "transformer" / "config.json").get("guidance_embeds"):
        return ""
    return (
        "from diffusers.guiders import ClassifierFreeGuidance\n\n"
        f"pipe.guider = pipe.ocr_guider = ClassifierFreeGuidance(guidance_scale={guidance_scale:g})\n"
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


PLAIN_SETUPS: dict[ModelName, PlainSetup] = {
    "sana": PlainSetup(_euler_steps, _euler_steps_code),
    "hunyuan_image": PlainSetup(_plain_guider, _plain_guider_code),
}


def set_up_plainly(name: ModelName, pipeline: Any, guidance_scale: float) -> None:
    """Make a plain pipeline draw, when called, what the engine draws at this guidance scale."""
    if name in PLAIN_SETUPS:
        PLAIN_SETUPS[name].apply(pipeline, guidance_scale)


def setup_code(name: ModelName, folder: Path, guidance_scale: float) -> str:
    """The same as lines of Python about `pipe`; "" for most families."""
    return PLAIN_SETUPS[name].code(folder, guidance_scale) if name in PLAIN_SETUPS else ""


def load_lora(pipeline: Any, folder: Path, file_name: str) -> None:
    """Load a LoRA's file as diffusers does: HunyuanImage's pipeline knows none, but its transformer does."""
    if isinstance(pipeline, LoraBaseMixin):
        pipeline.load_lora_weights(folder, weight_name=file_name)
    else:
        pipeline.transformer.load_lora_adapter(folder, weight_name=file_name)


def lora_code(name: ModelName, file_name: str) -> str:
    """The same as a line of Python about `pipe`."""
    if name == "hunyuan_image":
        # Without the file named apart, diffusers 0.42 reads no header, and would take alpha for the rank.
        return f'pipe.transformer.load_lora_adapter(".", weight_name="{file_name}")\n'
    return f'pipe.load_lora_weights("{file_name}")\n'
