"""Make the built-in model's weights: autoencoder, text encoders, flow model, then a diffusers pipeline folder.

    python -m engine.builtin.pretrain autoencoder --out DIR
    python -m engine.builtin.pretrain text --out DIR
    python -m engine.builtin.pretrain flow --out DIR
    python -m engine.builtin.pretrain export --out DIR [--to FOLDER]

Each step keeps its state in DIR; the first and the third go on where they stopped. On two CPU cores with bfloat16
instructions the whole takes a little over an hour.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from engine.builtin import WEIGHTS
from engine.builtin.autoencoder import load_autoencoder, reconstruction_share, train_autoencoder
from engine.builtin.flow import FlowSettings, FlowTrainer, build_transformer
from engine.builtin.progress import load_state
from engine.builtin.text import build_silent_encoder, build_tokenizer, load_text_encoders, train_text

SHIFT = 3.0


def export(out: Path, folder: Path) -> None:
    """Write the pipeline folder with the running average of the flow model; text encoders keep full precision."""
    state = load_state(out / "flow.pt")
    if state is None:
        raise ValueError(f"There is no flow model in {out}: run the step 'flow' first.")
    transformer = build_transformer()
    transformer.load_state_dict(state["averaged"])
    autoencoder = load_autoencoder(out)
    autoencoder.register_to_config(scaling_factor=1.0 / state["deviation"], shift_factor=state["mean"])
    first, second = load_text_encoders(out)
    silent_tokenizer, third = build_silent_encoder()
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=autoencoder,
        text_encoder=first,
        tokenizer=build_tokenizer(),
        text_encoder_2=second,
        tokenizer_2=build_tokenizer(),
        text_encoder_3=third,
        tokenizer_3=silent_tokenizer,
    )
    # A plain call opens diffusers' models in single precision, but transformers' in the one they were saved in.
    pipeline.transformer.half()
    pipeline.vae.half()
    pipeline.save_pretrained(folder)


def main() -> None:
    """Run one step from the command line."""
    parser = argparse.ArgumentParser(description="Make the built-in model's weights, step by step.")
    parser.add_argument("step", choices=("autoencoder", "text", "flow", "export"))
    parser.add_argument("--out", type=Path, required=True, help="folder for states and logs")
    parser.add_argument("--to", type=Path, default=WEIGHTS, help="pipeline folder that 'export' writes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimizer steps (defaults: 2700, 900, 3500)")
    parser.add_argument("--scenes", type=int, default=40_000, help="scenes that the flow model is shown")
    parser.add_argument("--batch", type=int, help="captions or images a step (defaults: 16, 128, 64)")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if arguments.step == "autoencoder":
        model = train_autoencoder(out, arguments.steps or 2700, arguments.batch or 16, 2e-3, arguments.seed)
        print(f"reconstructions all correct: {reconstruction_share(model):.3f}")
    elif arguments.step == "text":
        train_text(out, arguments.steps or 900, arguments.batch or 128, 2e-3, arguments.seed)
    elif arguments.step == "flow":
        settings = FlowSettings(
            num_steps=arguments.steps or 3500,
            batch_size=arguments.batch or 64,
            num_scenes=arguments.scenes,
            seed=arguments.seed,
        )
        FlowTrainer(out, settings).train()
    else:
        export(out, arguments.to)


if __name__ == "__main__":
    main()
