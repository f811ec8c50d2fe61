"""Which prompts a run trains on, which it is judged on, and in what order they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.builtin import prompts as builtin_prompts
from engine.prompt_files import hold_out, read_prompts
from engine.seeds import derived_seed
from engine.settings import RunSettings

NUM_BUILTIN_TRAINING_PROMPTS = 4096


@dataclass(frozen=True)
class RunPrompts:
    """Training prompts and held-out prompts of a run, with what a creator should know of the split."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load_prompts(settings: RunSettings) -> RunPrompts:
    """The prompts the settings name. Raises ValueError with a sentence if a file cannot be used."""
    source, num_held_out = settings.prompts, settings.evaluation.num_prompts
    held_out: Sequence[str]
    notes: tuple[str, ...] = ()
    if source.file is None:
        training: Sequence[str] = builtin_prompts.training_prompts(NUM_BUILTIN_TRAINING_PROMPTS, seed=source.seed)
        held_out = builtin_prompts.held_out_prompts(num_held_out, seed=source.seed)
    else:
        given = read_prompts(Path(source.file)).prompts
        training, held_out = hold_out(given)
        notes = (_note(len(given), len(held_out)),)
    if source.evaluation_file is not None:
        held_out = read_prompts(Path(source.evaluation_file)).prompts
        training, notes = (training if source.file is None else given), ()
    return RunPrompts(tuple(training), tuple(held_out)[:num_held_out], notes)


def _note(num_given: int, num_held_out: int) -> str:
    if num_given == 1:
        return "There is only one prompt, so the gallery shows the prompt that is trained on."
    return f"{num_held_out} of {num_given} prompts are held out, for the gallery: the run is not trained on them."


def prompts_of_iteration(training: tuple[str, ...], iteration: int, count: int, seed: int) -> list[str]:
    """The `count` prompts of an iteration (from 0): each comes once before any comes again, every pass shuffled."""
    total = len(training)
    chosen: list[str] = []
    for position in range(iteration * count, (iteration + 1) * count):
        order = np.random.default_rng(derived_seed(seed, "prompt_order", position // total)).permutation(total)
        chosen.append(training[order[position % total]])
    return chosen
