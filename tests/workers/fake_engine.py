"""An engine that learns nothing: it speaks engine.events lines, draws coloured discs, and misbehaves when told to.

Started like `python -m engine.process`, with flags before the command: `fake_engine.py --crash-at 3 train …`.
"""

# ruff: noqa: T201 - a process speaks by printing

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

from engine.events import (
    CheckpointSaved,
    Event,
    Finished,
    IterationDone,
    Message,
    PhaseSeconds,
    SampleImage,
    SamplesDrawn,
    Started,
)
from engine.prompt_files import read_prompts
from engine.settings import RunSettings
from engine.settings_text import read_settings

PALETTE = ["#e4572e", "#17bebb", "#ffc914", "#2e86ab", "#76b041", "#9b5de5", "#f15bb5", "#3d405b"]
BUILTIN_PROMPTS = [
    "a red circle", "a teal square above a yellow circle", "a yellow triangle", "a blue circle left of a green square",
    "a green star", "two purple circles", "a pink square", "a grey triangle below a red circle",
]  # fmt: skip


def reward_at(step: int) -> float:
    """What the row of a step must hold, whoever wrote it."""
    return round(1.0 - math.exp(-step / 20.0), 6)


class Run:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.settings: RunSettings = read_settings(Path(arguments.settings))
        self.out = Path(arguments.out)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "settings.yaml").write_text(self.settings.to_yaml())
        self.events = (self.out / "events.jsonl").open("a")
        self.stop = False
        if not arguments.ignore_sigterm:
            signal.signal(signal.SIGTERM, self.on_signal)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def on_signal(self, *_: object) -> None:
        self.stop = True

    def say(self, event: Event) -> None:
        self.events.write(event.model_dump_json() + "\n")
        self.events.flush()

    def first_step(self) -> int:
        for candidate in self.arguments.resume_from:
            try:
                return int(json.loads((Path(candidate) / "manifest.json").read_text())["step"])
            except (OSError, ValueError):
                print(f"passing over {candidate}", file=sys.stderr)
        return 0

    def train(self) -> int:
        arguments, settings = self.arguments, self.settings
        if arguments.refuse:
            print(arguments.refuse, file=sys.stderr)
            self.say(Message(time=time.time(), level="error", text=arguments.refuse))
            return 2
        first = self.first_step()
        self.say(Started(time=time.time(), step=first, iterations=settings.iterations, device="fake", versions={}))
        self.say(Message(time=time.time(), text=f"Going on from step {first}."))
        if first == 0:
            self.draw(0)
        for step in range(first + 1, settings.iterations + 1):
            self.misbehave(step)
            time.sleep(arguments.delay)
            self.iterate(step)
            if step % settings.evaluation.every == 0 or step == settings.iterations:
                self.draw(step)
            if step % settings.checkpoints.every == 0 or step == settings.iterations or self.stop:
                self.save(step)
            if self.stop:
                self.say(Finished(time=time.time(), step=step, outcome="stopped", reason="SIGTERM"))
                return 0
        self.say(Finished(time=time.time(), step=settings.iterations, outcome="completed"))
        return 0

    def misbehave(self, step: int) -> None:
        arguments = self.arguments
        if step == arguments.crash_at:
            print("RuntimeError: the fake engine crashed", file=sys.stderr)
            sys.exit(1)
        if step == arguments.leave_at:
            sys.exit(0)
        if step == arguments.tear_at:
            self.events.write('{"kind": "iterat')
            self.events.flush()
            sys.exit(1)
        if step == arguments.hang_at:
            while not self.stop:
                time.sleep(0.02)
        if step == arguments.kill_at and not Path(arguments.kill_mark).exists():
            Path(arguments.kill_mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def iterate(self, step: int) -> None:
        rewards = {reward.key: reward_at(step) for reward in self.settings.rewards}
        self.say(
            IterationDone(
                time=time.time(), step=step, rewards=rewards, loss=random.random() / 10, grad_norm=0.5,
                ratio_drift=0.0, clipped_share=0.2, window_start=step % 10,
                seconds=PhaseSeconds(sample=1.0, decode=0.2, score=0.1, train=2.0), num_forwards=25,
                num_trained_steps=48, eta_seconds=(self.settings.iterations - step) * self.arguments.delay,
            )
        )  # fmt: skip

    def prompts(self) -> list[str]:
        file = self.settings.prompts.evaluation_file
        prompts = list(read_prompts(Path(file)).prompts) if file else BUILTIN_PROMPTS
        return prompts[: min(self.settings.evaluation.num_prompts, self.arguments.num_images)]

    def draw(self, step: int) -> None:
        from PIL import Image, ImageDraw

        folder = self.out / "samples" / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        images = []
        for index, prompt in enumerate(self.prompts()):
            image = Image.new("RGB", (64, 64), "#f4f1de")
            size = 8 + 20 * reward_at(step + 1)
            centre = 32 + 8 * math.sin(index)
            ImageDraw.Draw(image).ellipse(
                (centre - size, centre - size, centre + size, centre + size), fill=PALETTE[index % len(PALETTE)]
            )
            image.save(folder / f"{index:03d}.png")
            path = f"samples/step-{step:06d}/{index:03d}.png"
            rewards = {reward.key: reward_at(step) for reward in self.settings.rewards}
            seed = self.settings.evaluation.seed + index
            images.append(SampleImage(index=index, prompt=prompt, seed=seed, path=path, rewards=rewards))
        means = {reward.key: reward_at(step) for reward in self.settings.rewards}
        self.say(SamplesDrawn(time=time.time(), step=step, images=tuple(images), rewards=means, seconds=0.1))

    def save(self, step: int) -> None:
        folder = self.out / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(json.dumps({"step": step}))
        self.say(
            CheckpointSaved(time=time.time(), step=step, path=folder.relative_to(self.out).as_posix(), num_bytes=1000)
        )


def export(arguments: argparse.Namespace) -> int:
    if arguments.refuse:
        print(arguments.refuse, file=sys.stderr)
        return 2
    time.sleep(arguments.delay)
    Path(arguments.out).write_bytes(b"not really safetensors")
    print(f"Exported step {arguments.checkpoint} as {arguments.format}.", flush=True)
    if arguments.push and arguments.refuse_push:
        print(arguments.refuse_push, file=sys.stderr)
        return 2
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.01)
    parser.add_argument("--num-images", type=int, default=2)
    for name in ("--crash-at", "--leave-at", "--tear-at", "--hang-at", "--kill-at"):
        parser.add_argument(name, type=int, default=-1)
    parser.add_argument("--kill-mark", default="")
    parser.add_argument("--refuse", default="")
    parser.add_argument("--refuse-push", default="")
    parser.add_argument("--ignore-sigterm", action="store_true")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("--settings", required=True)
    train.add_argument("--out", required=True)
    train.add_argument("--resume-from", action="append", default=[])
    out = commands.add_parser("export")
    for name in ("--run", "--checkpoint", "--format", "--out"):
        out.add_argument(name, required=True)
    out.add_argument("--dtype", default="float32")
    out.add_argument("--push", default="")
    out.add_argument("--push-last", action="store_true")
    out.add_argument("--public", action="store_true")
    return parser.parse_args()


def main() -> int:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    arguments = parse()
    return Run(arguments).train() if arguments.command == "train" else export(arguments)


if __name__ == "__main__":
    sys.exit(main())
