"""The published loop's structure, and the benchmark in miniature from command line to results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

# Full fine-tuning in bfloat16 holds weights in float32: their RMSNorm is then not torch's fused one.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")


@pytest.fixture
def published_loop(benchmarks: None) -> ModuleType:
    return importlib.import_module("published_loop")


def test_in_miniature(published_loop: ModuleType, tmp_path: Path) -> None:
    changes = {"sampling": {"num_steps": 8}, "grpo": {"group_size": 4, "updates_per_iteration": 2}}
    published_loop.main([
        "--size", "tiny", "--rounds", "1", "--recipes", "mixgrpo", "--tuning", "full", "--device", "cpu",
        "--changes", json.dumps(changes), "--results", str(tmp_path),
    ])  # fmt: skip
    (path,) = tmp_path.glob("published_loop_tiny.json")
    loops = json.loads(path.read_text())["recipes"]["mixgrpo"]["full"]
    assert list(loops) == list(published_loop.LOOPS)
    # The published loop draws every image by itself, 8 forwards each; the engine shares the prefix of one step.
    assert {name: loop["forwards"] for name, loop in loops.items() if "published" in name} == dict.fromkeys(
        ("published", "published, no checkpointing"), 4 * 8
    )
    assert loops["Palate"]["forwards"] == 1 + 4 * 7
    assert {loop["trained_steps"] for loop in loops.values()} == {16}
    assert loops["published"]["ratio_to_published"] == 1.0
    assert all(loop["ratio_to_published"] > 0 for loop in loops.values())
