"""A data home with runs in every state, as workers would leave it: figures, pictures of shapes, checkpoints."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

from PIL import Image, ImageDraw

from engine.events import CheckpointSaved, IterationDone, PhaseSeconds, SampleImage, SamplesDrawn, Started
from engine.prompt_files import parse_prompts
from engine.settings import (
    EvaluationSettings,
    FlashSettings,
    RewardSettings,
    RunSettings,
)
from store import jobs, results, runs
from store.config import Config
from store.database import Database
from store.jobs import Lease
from store.prompt_sets import create_prompt_set

COLOURS = {"red": (206, 66, 61), "blue": (58, 110, 190), "green": (70, 150, 84), "yellow": (222, 178, 52),
           "purple": (132, 84, 160), "orange": (226, 128, 52)}
SHAPES = ("circle", "square", "triangle")


def prompts_for(count: int) -> list[str]:
    chosen = random.Random(3)
    names = list(COLOURS)
    return [
        f"a {chosen.choice(names)} {chosen.choice(SHAPES)} "
        f"{chosen.choice(['left of', 'above', 'right of', 'below'])} a {chosen.choice(names)} {chosen.choice(SHAPES)}"
        for _ in range(count)
    ]


def picture(path: Path, prompt: str, vividness: float, size: int = 64) -> None:
    """The prompt's two shapes on a pale ground, the more colourful the higher `vividness` (0 to 1)."""
    words = prompt.split()
    ground = tuple(round(225 - 70 * vividness * share) for share in (0.3, 0.9, 0.4))
    image = Image.new("RGB", (size * 2, size * 2), ground)
    pen = ImageDraw.Draw(image)
    places = {"left": ((0.3, 0.5), (0.72, 0.5)), "right": ((0.72, 0.5), (0.3, 0.5)),
              "above": ((0.5, 0.28), (0.5, 0.74)), "below": ((0.5, 0.74), (0.5, 0.28))}
    here = next(place for word, place in places.items() if word in words)
    for (x, y), colour, shape in zip(here, (words[1], words[-2]), (words[2], words[-1]), strict=True):
        fill = tuple(round(160 + (part - 160) * (0.35 + 0.65 * vividness)) for part in COLOURS[colour])
        box = [2 * size * (x - 0.18), 2 * size * (y - 0.18), 2 * size * (x + 0.18), 2 * size * (y + 0.18)]
        if shape == "circle":
            pen.ellipse(box, fill=fill)
        elif shape == "square":
            pen.rectangle(box, fill=fill)
        else:
            pen.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) / 2, box[1])], fill=fill)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((size, size), Image.Resampling.LANCZOS).save(path)


class Seeder:
    """Writes rows as a worker does: under a lease, through the store's own functions."""

    def __init__(self, config: Config, database: Database) -> None:
        self.config, self.database = config, database
        self.random = random.Random(7)

    def run(self, name: str, settings: RunSettings, *, prompt_set_id: str | None = None, is_demo: bool = False) -> str:
        with self.database.write() as session:
            run = runs.create_run(session, name=name, settings=settings, prompt_set_id=prompt_set_id, is_demo=is_demo)
            return run.id

    def claim(self, run_id: str) -> Lease:
        with self.database.write() as session:
            lease = jobs.claim(session, runs.job_of(session, run_id), "worker-1", 3600)
        assert lease is not None
        return lease

    def train(self, lease: Lease, settings: RunSettings, until: int, *, num_prompts: int | None = None) -> None:
        """Figures up to step `until`, with samples and checkpoints where the settings want them."""
        begun = time.time() - until * 2.5
        with self.database.write() as session:
            results.record_started(session, lease, Started(
                time=begun, step=0, iterations=settings.iterations, device="cpu", versions={}))
            text = f"Training on cpu, {settings.iterations} iterations."
            results.record_log(session, lease, text, number=1, time=begun)
        prompts = prompts_for(num_prompts or settings.evaluation.num_prompts)
        self.samples(lease, settings, 0, prompts, begun)
        for step in range(1, until + 1):
            self.iteration(lease, settings, step, begun + step * 2.5)
            if step % settings.evaluation.every == 0:
                self.samples(lease, settings, step, prompts, begun + step * 2.5)
            if step % settings.checkpoints.every == 0 or step == settings.iterations:
                self.checkpoint(lease, step, begun + step * 2.5)

    def level(self, step: int) -> float:
        return 1 - math.exp(-step / 40)

    def rewards(self, settings: RunSettings, step: int, noise: float) -> dict[str, float]:
        level = self.level(step) + self.random.gauss(0, noise)
        tops = {"vividness": (0.89, 0.55), "composition": (0.61, 0.08), "compressibility": (-3.1, 0.4),
                "incompressibility": (3.1, 0.4)}
        return {reward.key: tops[reward.name][0] + tops[reward.name][1] * level for reward in settings.rewards}

    def iteration(self, lease: Lease, settings: RunSettings, step: int, when: float) -> None:
        event = IterationDone(
            time=when, step=step, rewards=self.rewards(settings, step, 0.18), loss=0.01, grad_norm=0.4,
            ratio_drift=1e-6, clipped_share=0.1, window_start=step // 5,
            seconds=PhaseSeconds(sample=1.2 + 0.1 * self.random.random(), decode=0.15, score=0.06, train=0.9),
            num_forwards=14, num_trained_steps=192, eta_seconds=(settings.iterations - step) * 2.3,
        )
        with self.database.write() as session:
            results.record_iteration(session, lease, event)

    def samples(self, lease: Lease, settings: RunSettings, step: int, prompts: list[str], when: float) -> None:
        folder = self.config.home / "runs" / lease.run_id / str(lease.epoch)
        images = []
        for index, prompt in enumerate(prompts):
            path = f"samples/step-{step:06d}/{index:03d}.png"
            picture(folder / path, prompt, min(1.0, max(0.0, self.level(step) + self.random.gauss(0, 0.05))))
            images.append(SampleImage(index=index, prompt=prompt, seed=1000 + index, path=path,
                                      rewards=self.rewards(settings, step, 0.15)))
        means = {name: sum(image.rewards[name] for image in images) / len(images) for name in images[0].rewards}
        metrics = {"all_correct": 0.34 + 0.02 * self.level(step)} if "composition" in means else {}
        with self.database.write() as session:
            results.record_samples(session, lease, SamplesDrawn(
                time=when, step=step, images=tuple(images), rewards=means, metrics=metrics, seconds=3.0))
            results.record_log(session, lease, f"Step {step}: drew {len(images)} held-out images.", number=step + 2,
                               time=when)

    def checkpoint(self, lease: Lease, step: int, when: float) -> None:
        with self.database.write() as session:
            results.record_checkpoint(session, lease, CheckpointSaved(
                time=when, step=step, path=f"checkpoints/step-{step:06d}", num_bytes=3_412_000))

    def export(self, run_id: str) -> str:
        """A finished export with a small file."""
        with self.database.write() as session:
            export = runs.request_export(session, run_id)
            lease = jobs.claim(session, export.job_id, "worker-1", 60)
            assert lease is not None
            path = f"runs/{run_id}/exports/{export.id}/pytorch_lora_weights.safetensors"
            file = self.config.home / path
            file.parent.mkdir(parents=True)
            file.write_bytes(b"\0" * 2048)
            results.record_export(session, lease, path=path, num_bytes=2048, report="Loads in diffusers.")
            jobs.finish(session, lease)
            return export.id


def balance(iterations: int = 100) -> RunSettings:
    return RunSettings(
        iterations=iterations, flash=FlashSettings(enabled=True), evaluation=EvaluationSettings(num_prompts=12),
        rewards=(RewardSettings(name="vividness", weight=0.4), RewardSettings(name="composition", weight=0.6)),
    )


def seed(config: Config, database: Database) -> dict[str, str]:
    """One run in each state; returns their ids by state, and the prompt set's as "prompts"."""
    seeder = Seeder(config, database)
    with database.write() as session:
        parsed = parse_prompts("scenes.txt", "\n".join(prompts_for(40)).encode())
        prompt_set = create_prompt_set(session, "My scenes", parsed, "scenes.txt").id
    ids = {"prompts": prompt_set}

    vivid = RunSettings(iterations=60, rewards=(RewardSettings(name="vividness"),))
    ids["done"] = seeder.run("Vivid only", vivid)
    lease = seeder.claim(ids["done"])
    seeder.train(lease, vivid, 60, num_prompts=8)
    with database.write() as session:
        jobs.finish(session, lease)
    seeder.export(ids["done"])

    ids["failed"] = seeder.run("Big batches", balance())
    lease = seeder.claim(ids["failed"])
    seeder.train(lease, balance(), 22)
    with database.write() as session:
        results.record_log(session, lease, "RuntimeError: [enforce fail at alloc_cpu.cpp] out of memory", number=99,
                           level="error")
        jobs.fail(session, lease, "The engine failed: RuntimeError: out of memory", retry=False)

    ids["cancelled"] = seeder.run("Never mind", balance(), prompt_set_id=prompt_set)
    with database.write() as session:
        runs.request_cancel(session, ids["cancelled"])

    ids["running"] = seeder.run("Demo: livelier colours, same scenes", balance(), is_demo=True)
    seeder.train(seeder.claim(ids["running"]), balance(), 64)
    ids["queued"] = seeder.run("Composition next", balance())
    return ids
