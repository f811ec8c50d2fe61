"""What Qwen-Image alone has: a plain call that cuts prompts shorter than its own encode_prompt does."""

from __future__ import annotations

import torch

from engine.models.qwen_image import QwenImage
from tests.engine.models.families import FAMILIES, call, difference, draw
from tests.engine.models.tiny_pipelines import qwen_image


def test_a_prompt_is_cut_where_the_plain_call_cuts_it() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = qwen_image()
    for parameter in pipeline.transformer.parameters():
        parameter.data *= 2  # so that random weights heed the prompt
    prompts = ["a red circle " * 180 + "and a blue star left of a green square " * 30, "a red circle"]
    model = QwenImage(pipeline, 32)
    embeddings = model.encode(prompts)
    assert embeddings.texts["tokens"].shape[1] == 512
    drawn = draw(model, prompts, 2, 1.0, seed=7)
    assert difference(drawn, call(FAMILIES["Qwen-Image"], pipeline, prompts, 2, 1.0, seed=7)) <= 1
    assert drawn.std() > 5
