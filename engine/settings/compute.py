"""On what it is computed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.settings.section import PositiveInt, Section

# Images at a time on a CPU, whatever machine it is, so that results do not depend on it; more is not faster there.
CPU_MICRO_BATCH = 48


class ComputeSettings(Section):
    """Device and batching."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = a GPU if there is one.")
    micro_batch: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Most images in one forward pass; auto = as many as fit a GPU's memory, by trying; 48 on a CPU.",
    )
    num_threads: int = Field(0, ge=0, description="CPU threads of a process; 0 = all cores, shared by the processes.")
    num_processes: int = Field(
        1, ge=1, le=64,
        description="Processes on this machine that train together, on GPUs one each; each takes whole prompts.",
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description='With "fsdp" a process holds a part of all weights: full fine-tuning of what does not fit a GPU.',
    )
    embedding_cache: bool = Field(
        True,
        description="Encode each prompt once, keep its embeddings in your cache folder, and free the text encoders.",
    )
    offload: bool = Field(
        False,
        description="Keep text encoders and autoencoder in the CPU's memory, and on the GPU only while they work.",
    )
    compile: bool = Field(
        False,
        description="Compile the transformer's blocks with torch.compile, for drawing and training alike; minutes at a "
        "run's start. Images drawn outside a run (generate, evaluate) are not worth that, and never compile.",
    )
