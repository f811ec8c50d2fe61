"""The model card: what the files are, how well they do, how to load them, and how to make them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from engine.artifacts.export.architecture import architecture_id
from engine.artifacts.export.base import ExportFormat
from engine.artifacts.export.source import ExportSource
from engine.artifacts.export.started import how_to_start
from engine.artifacts.export.verification import Verification, in_words
from engine.events import SamplesDrawn
from engine.standardised import Scale, scales_of


def model_card(
    source: ExportSource, kind: ExportFormat, verification: Verification, images: Sequence[str], licence_beside: bool
) -> str:
    """Markdown with the metadata a model hub reads; `images` are files beside it that show the run's first prompts.

    `licence_beside`: the text of the base's licence lies beside it too.
    """
    settings = source.public_settings()
    rewards = ", ".join(f"{reward.key} × {reward.weight:g}" for reward in settings.rewards)
    average = ", as a running average of the weights" if source.averaged else ""
    held = settings.model.quantisation
    beside = "" if held == "none" else f" The base was held in {held} in training and for the gallery."
    return f"""---
{yaml.safe_dump(_metadata(source, kind, images, licence_beside), sort_keys=False, allow_unicode=True).rstrip()}
---

# {source.base_name}, tuned for {" + ".join(reward.key for reward in settings.rewards if reward.weight > 0)}

{source.step} iterations of {source.method} on `{source.relative_to}` with the rewards {rewards}{average}.
Made with Palate. The weights are in {source.precision}.{beside}

## Scores

{_table(source)}
{_gallery(source, images)}
## Use

{how_to_start(source, is_adapter=kind.relation == "adapter")}{kind.how_to_use(source)}

Checked before it was given out: {in_words(verification, kind.checked_by)}.

## Licence

{_licence(source)}

## Made from

| | |
| --- | --- |
| base model | `{source.base_name}`, {architecture_id(source.facts)} |
| base revision | `{source.base_revision}` |
| settings | `{source.manifest.settings_digest}`, below |
| seeds | training {settings.seed}, evaluation {settings.evaluation.seed} |
| versions | {", ".join(f"{name} {version}" for name, version in source.manifest.versions.items())} |

```yaml
{settings.to_yaml().rstrip()}
```
"""


def drawing_code(source: ExportSource, loading: str) -> str:
    """A block of Python: `loading`, which ends with a pipeline `pipe`, and the call that draws the first tile."""
    arguments = "\n".join(f"    {name}={_literal(value)}," for name, value in source.call.items())
    seed, prompt = source.settings.evaluation.seed, source.check_prompts()[0]
    return (
        f"```python\n{loading}{source.setup_code}\nimage = pipe(\n    prompt={prompt!r},\n{arguments}\n"
        f'    generator=torch.Generator("cpu").manual_seed({seed}),\n).images[0]\n```\n\n'
        "That is the first tile of the run's gallery."
    )


def _literal(value: object) -> str:
    """An argument of a call in Python; numbers without needless digits."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)


def _metadata(
    source: ExportSource, kind: ExportFormat, images: Sequence[str], licence_beside: bool
) -> dict[str, object]:
    """The card's YAML head."""
    lora = ["lora", "template:sd-lora"] if kind.relation == "adapter" else []
    metadata: dict[str, object] = {
        "base_model": source.base_name,
        "base_model_relation": kind.relation,
        "library_name": "diffusers",
        **source.licence.card_fields(licence_beside),
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "flow-matching", source.method.lower(), "palate", *lora],
    }
    drawn = source.samples_at(source.step)
    if drawn is not None and images:
        metadata["widget"] = [
            {"text": sample.prompt, "output": {"url": image}}
            for sample, image in zip(drawn.images, images, strict=False)
        ]
    return metadata


def _table(source: ExportSource) -> str:
    """Mean held-out scores before and after, as a Markdown table."""
    base, tuned = source.samples_at(0), source.samples_at(source.step)
    if base is None or tuned is None:
        return "This step was not evaluated."
    before, after = _means(base), _means(tuned)
    scales = scales_of(image.rewards for image in base.images)
    rows = [
        f"| {name.replace('_', ' ')} | {_figure(before, name)} | {_figure(after, name)} "
        f"| {_standardised(after, name, scales)} |"
        for name in dict.fromkeys((*before, *after))
    ]
    evaluation = source.settings.evaluation
    return (
        f"Means over {len(tuned.images)} held-out prompts, the same seeds before and after, "
        f"{evaluation.num_steps} steps, guidance {evaluation.guidance_scale:g}; in std: the change in standard "
        "deviations of the base's scores.\n\n"
        f"| | base | step {source.step} | in std |\n| --- | --- | --- | --- |\n" + "\n".join(rows)
    )


def _gallery(source: ExportSource, images: Sequence[str]) -> str:
    """The images that lie beside the card, each over its prompt; empty without any."""
    drawn = source.samples_at(source.step)
    if drawn is None or not images:
        return ""
    prompts = [sample.prompt.replace("|", "\\|").replace("\n", " ") for sample in drawn.images[: len(images)]]
    rows = [[f"![]({image})" for image in images], ["---"] * len(images), prompts]
    return "\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _figure(means: dict[str, float], name: str) -> str:
    return f"{means[name]:.3f}" if name in means else "–"


def _standardised(means: dict[str, float], name: str, scales: Mapping[str, Scale]) -> str:
    """A mean in standard deviations of the base's scores; of a further measure, which images do not bear, a dash."""
    return f"{scales[name].standardised(means[name]):+.2f}" if name in means and name in scales else "–"


def _means(samples: SamplesDrawn) -> dict[str, float]:
    return {**samples.rewards, **samples.metrics}


def _licence(source: ExportSource) -> str:
    licence = source.licence
    if licence.identifier == "other" and licence.name is None and licence.link is None and licence.file is None:
        return (
            f"What was tuned from `{source.base_name}` is under that model's licence, which its folder does not name: "
            "look it up before you share these files."
        )
    return f"What was tuned from `{source.base_name}` is under that model's licence: {licence.text}."
