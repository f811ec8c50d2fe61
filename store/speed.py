"""How fast earlier runs of a model were here: the surest word on how fast the next will be."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from engine.flops import count_flops
from engine.model_size import ModelSize
from engine.settings import RunSettings
from engine.settings_text import SettingsError, parse_settings
from engine.time_estimate import Speed
from engine.work import num_passes
from store.tables import Metric, Run

_RUNS_LOOKED_AT = 50
_LEAST_ITERATIONS = 2


def measured_speed(session: Session, settings: RunSettings, size: ModelSize) -> Speed | None:
    """The speed of the newest run of the same model on the same kind of device; None if there was none."""
    measured = (
        select(
            Metric.run_id,
            func.count().label("iterations"),
            func.sum(Metric.sample_seconds + Metric.train_seconds).label("seconds"),
            func.sum(Metric.decode_seconds).label("decoding"),
            func.sum(Metric.num_forwards).label("forwards"),
            func.sum(Metric.num_trained_steps).label("trained"),
        )
        # The first iteration warms up.
        .where(Metric.step > 1)
        .group_by(Metric.run_id)
        .subquery()
    )
    rows = session.execute(
        select(Run.settings, measured)
        .join(measured, measured.c.run_id == Run.id)
        .where(measured.c.iterations >= _LEAST_ITERATIONS)
        .order_by(Run.created_at.desc())
        .limit(_RUNS_LOOKED_AT)
    )
    for row in rows:
        try:
            earlier = parse_settings(row.settings)
        except SettingsError:
            continue
        if _alike(earlier) != _alike(settings) or row.seconds <= 0:
            continue
        flops = count_flops(size, earlier)
        passes = 1 if earlier.method == "nft" else num_passes(
            earlier, earlier.sampling.guidance_scale, size.takes_guidance
        )
        # PostgreSQL sums whole numbers as decimals.
        done = int(row.forwards) * flops.forward + int(row.trained) * passes * flops.trained(earlier)
        images = row.iterations * earlier.grpo.prompts_per_iteration * earlier.grpo.group_size
        pixels = (size.side(settings) / size.side(earlier)) ** 2
        return Speed(
            flops=done / row.seconds / earlier.compute.num_processes,
            source="going by an earlier run of this model here",
            on_gpu=settings.compute.device == "cuda",
            decoding=row.decoding / images * pixels * earlier.compute.num_processes,
        )
    return None


def _alike(settings: RunSettings) -> tuple[object, ...]:
    """What two runs must share for one to tell of the other."""
    model, compute = settings.model, settings.compute
    return (
        model.name, model.folder, model.hub_id, model.precision, model.quantisation,
        compute.device, compute.num_threads, compute.num_processes, compute.compile, compute.offload,
    )  # fmt: skip
