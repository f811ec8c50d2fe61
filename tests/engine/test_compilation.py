"""compute.compile: what is traced, how often, and one small stack by torch's own code generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine import compilation
from engine.artifacts.checkpoint import load_checkpoint
from engine.compilation import CompilationError, compilation_told, compile_blocks
from engine.events import Event, IterationDone
from engine.models import load_model
from engine.settings import RunSettings
from engine.train import train
from engine.tuning import make_trainable
from tests.engine.code_generator import needs_code_generator

# The tracer's own: of modules that it imports, and of the tensors that it looks at.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


class Block(nn.Module):
    """What is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.layer(inputs).tanh()


class Stack(nn.Module):
    """A transformer of three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block(), Block()])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            inputs = block(inputs)
        return inputs


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tracer's graphs are run as they are; gives the number of operations of each, as they are made."""
    graphs: list[int] = []

    def run_as_it_is(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(compilation, "BACKEND", run_as_it_is)
    torch.compiler.reset()
    return graphs


def test_blocks_alike_are_compiled_once_for_batches_of_any_size(traced: list[int]) -> None:
    transformer = Stack()
    names = list(transformer.state_dict())
    inputs = torch.randn(6, 4)
    plain = transformer(inputs)
    compile_blocks(transformer)
    with torch.no_grad():
        for size in (6, 4, 2, 3, 5):
            torch.testing.assert_close(transformer(inputs[:size].clone()), plain[:size])
    assert len(traced) == 1, "the other blocks, and every other size, by what was compiled for the first"
    torch.testing.assert_close(transformer(inputs), plain)
    assert len(traced) == 3, "with gradient: for inputs that have none, and for those that have one"
    assert list(transformer.state_dict()) == names


def test_what_the_code_generator_makes_draws_and_trains_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the backend that runs have: C++, compiled here and now."""
    needs_code_generator(monkeypatch, tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer, inputs = Stack(), torch.randn(6, 4, requires_grad=True)  # else the first block is one more variant
    plain = transformer(inputs)
    plain.square().sum().backward()
    expected = [parameter.grad for parameter in transformer.parameters()]
    transformer.zero_grad()
    compile_blocks(transformer)
    with torch.no_grad():
        drawn = transformer(inputs.clone())
        torch.testing.assert_close(transformer(inputs[:5].clone()), plain[:5])
    trained = transformer(inputs)
    trained.square().sum().backward()
    assert torch.equal(drawn, trained), "so ratios are 1"
    torch.testing.assert_close(trained, plain)
    torch.testing.assert_close([parameter.grad for parameter in transformer.parameters()], expected)
    assert list(tmp_path.rglob("*.so")), "C++ was compiled"


def test_a_compiled_run_is_on_policy_and_keeps_its_names(
    tiny_settings: RunSettings, tmp_path: Path, traced: list[int]
) -> None:
    data = tiny_settings.model_dump() | {"iterations": 1}
    # 8 images are drawn at a time, 2 at a time where the window is not reached yet and held out, 4 are trained.
    compiled = RunSettings.model_validate(data | {"compute": data["compute"] | {"compile": True}})
    events: list[Event] = []
    train(compiled, tmp_path / "compiled", events.append)
    iteration = next(event for event in events if isinstance(event, IterationDone))
    assert iteration.ratio_drift <= 1e-6
    assert iteration.num_forwards == 64
    assert len(traced) == 6, (
        "the last block is another, and so are the first one's inputs; with gradient and without; for every size"
    )
    saved = load_checkpoint(tmp_path / "compiled/checkpoints/step-000001").tensors["adapter.safetensors"]
    plain = make_trainable(load_model(compiled.model), compiled.tuning, compiled.seed, keep_base=False)
    assert saved.keys() == plain.parameters.keys()


def test_a_compiler_that_fails_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compilation, "BACKEND", fail)
    torch.compiler.reset()
    transformer = Stack()
    compile_blocks(transformer)
    with pytest.raises(CompilationError, match=r"no compiler here.*Set compute\.compile to false"), compilation_told():
        transformer(torch.zeros(2, 4))


def test_a_transformer_without_blocks_is_refused() -> None:
    with pytest.raises(CompilationError, match="no stack of blocks"):
        compile_blocks(nn.Linear(2, 2))


def test_a_sharded_run_refuses_it(tiny_settings: RunSettings) -> None:
    data = tiny_settings.model_dump() | {"tuning": {"method": "full"}}
    data["compute"] |= {"sharding": "fsdp", "compile": True}
    with pytest.raises(ValueError, match=r"compute\.compile does not go with"):
        RunSettings.model_validate(data)
