"""Chroma, a FLUX.1 schnell without its guidance and pooled text, trained for classifier-free guidance.

Text is T5's alone, always 512 tokens of it, with the mask that Chroma was trained with: the prompt's tokens and the
first of padding. diffusers 0.42 hands that mask to attention as numbers, 1 or 0 that are added to the logits, so what
it masks it only weakens (by e). The adapter draws what the plain pipeline draws, and passes on what `encode_prompt`
gives, whole: once that is a mask of true and false, it masks here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ChromaPipeline
from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock
from torch import Tensor, nn

from engine.models.base import JOINT_ATTENTION_LORA_TARGETS, PromptEmbeddings
from engine.models.checkpointing import Mend, mended_checkpoints
from engine.models.pipeline_model import PipelineModel
from engine.models.tokens import from_tokens, to_tokens, token_positions


class Chroma(PipelineModel):
    """Adapter of a ChromaPipeline.

    Args:
        pipeline: the pipeline; parts that are not called (encoder, autoencoder) may be missing.
        resolution: pixels a side; None = the pipeline's own, 1024 with FLUX.1's autoencoder.
    """

    pipeline_class: type = ChromaPipeline
    takes_packed = True
    lora_targets: Sequence[str] = JOINT_ATTENTION_LORA_TARGETS

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts: T5's tokens (P, 512, D), and their mask (P, 512)."""
        tokens, _, mask, empty_tokens, _, empty_mask = self.pipeline.encode_prompt(list(prompts), device=self.device)
        return PromptEmbeddings({"tokens": tokens, "mask": mask}, {"tokens": empty_tokens[:1], "mask": empty_mask[:1]})

    def _predict(self, latents: Tensor, sigma: float, text: Mapping[str, Tensor]) -> Tensor:
        batch, height, width = len(latents), latents.shape[2] // self.packed, latents.shape[3] // self.packed
        tokens = to_tokens(latents, self.packed)
        mask = torch.cat([text["mask"], text["mask"].new_ones(batch, tokens.shape[1])], dim=1)
        with mended_checkpoints(self.transformer, _masked(mask)):
            predicted = self.transformer(
                hidden_states=tokens,
                encoder_hidden_states=text["tokens"],
                timestep=self._times(latents, sigma) / 1000,
                img_ids=token_positions(height, width, latents.device),
                txt_ids=torch.zeros(text["tokens"].shape[1], 3, device=latents.device),
                attention_mask=mask,
                return_dict=False,
            )[0]
        return from_tokens(predicted, height, width, self.packed)


def _masked(mask: Tensor) -> Mend:
    """Gives single blocks the mask (B, L), which diffusers forgets under gradient checkpointing."""

    def with_mask(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        is_forgotten = isinstance(block, ChromaSingleTransformerBlock) and len(inputs) == 3
        return (*inputs, mask) if is_forgotten else inputs

    return with_mask
