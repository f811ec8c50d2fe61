"""An evaluation's report as text: who drew what, and a table of means, differences and win rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app import words
from engine.intervals import Estimate
from engine.reports import DrawingModel, Evaluation

_KEY = "In brackets: 95 % intervals; Student's t for means and differences, Wilson's for shares and win rates."


def evaluation_text(evaluation: Evaluation) -> str:
    """All that a terminal shows of an evaluation."""
    scored = [evaluation.evaluated, *([evaluation.against] if evaluation.against else [])]
    lines = [f"Evaluated  {_model(evaluation.evaluated.model)}"]
    if evaluation.against:
        lines.append(f"Against    {_model(evaluation.against.model)}")
    lines += [f"Drawn      {_drawn(evaluation)}", "", *_aligned(_rows(evaluation)), "", _KEY]
    if evaluation.comparisons:
        lines.append(f"In std: the difference in standard deviations of {_whose(evaluation)} scores.")
        lines.append("Win rate: in how many pairs the evaluated model scores higher, a tie counted as half.")
    lines += [f"{each.model.name}: {note}" for each in scored for note in each.notes]
    return "\n".join(lines)


def _model(model: DrawingModel) -> str:
    return f"{model.name} (averaged weights)" if model.averaged else model.name


def _drawn(evaluation: Evaluation) -> str:
    drawing, count = evaluation.drawing, len(evaluation.evaluated.images)
    seeds = f"seeds {drawing.seed} to {drawing.seed + count - 1}" if count > 1 else f"seed {drawing.seed}"
    return ", ".join([
        f"{words.count(count, 'prompt')} ({evaluation.prompts_from})", seeds, words.count(drawing.num_steps, "step"),
        f"guidance {drawing.guidance_scale:g}", f"{drawing.precision} on {drawing.device_name}",
    ])  # fmt: skip


def _rows(evaluation: Evaluation) -> list[list[str]]:
    """The table's cells, headings first."""
    against = evaluation.against
    rows = [["", "evaluated", *(["against", "difference", "in std", "win rate"] if against else [])]]
    for name, mean in evaluation.evaluated.means.items():
        row = [name.replace("_", " "), _estimate(mean, _number(name))]
        if against:
            row.append(_estimate(against.means.get(name), _number(name)))
            comparison = evaluation.comparisons.get(name)
            row.append(_estimate(comparison.difference if comparison else None, _number(name, signed=True)))
            row.append(_signed(comparison.standardised if comparison else None))
            row.append(_estimate(comparison.win_rate if comparison else None, lambda share: f"{share * 100:.0f} %"))
        rows.append(row)
    return rows


def _number(name: str, *, signed: bool = False) -> Callable[[float], str]:
    """How a measure's figures are written: a digit more than in the gallery, since intervals are narrow."""
    form = f"{'+' if signed else ''}.{words.digits_for(name) + 1}f"
    return lambda value: format(value, form).replace("-", "−")


def _whose(evaluation: Evaluation) -> str:
    assert evaluation.against is not None
    return "the base model's" if evaluation.against.model.checkpoint is None else "the other's"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")


def _estimate(estimate: Estimate | None, written: Callable[[float], str]) -> str:
    if estimate is None:
        return "–"
    value = written(estimate.value)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{written(estimate.low)}, {written(estimate.high)}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
