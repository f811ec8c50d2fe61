"""The model card: what the files are, how well they do, how to load them, and how to make them again."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from engine.artifacts.export.base import ExportFormat
from engine.artifacts.export.source import ExportSource
from engine.artifacts.export.verification import Verification, in_words
from engine.events import SamplesDrawn


def model_card(source: ExportSource, kind: ExportFormat, verification: Verification, images: Sequence[str]) -> str:
    """Markdown with the metadata a model hub reads; `images` are files beside it that show the run's first prompts."""
    settings = source.public_settings()
    rewards = ", ".join(f"{reward.key} × {reward.weight:g}" for reward in settings.rewards)
    arguments = "\n".join(f"    {name}={_literal(value)}," for name, value in source.call.items())
    average = ", as a running average of the weights" if source.averaged else ""
    return f"""---
{yaml.safe_dump(_metadata(source, kind, images), sort_keys=False, allow_unicode=True).rstrip()}
---

# {source.base_name}, tuned for {" + ".join(reward.key for reward in settings.rewards if reward.weight > 0)}

{source.step} iterations of MixGRPO on `{source.base_name}` with the rewards {rewards}{average}.
Made with Palate; settings `{source.manifest.settings_digest}`, seed {settings.seed}.

## Scores

{_table(source)}

## Use

```python
{kind.how_to_load(source)}{source.setup_code}
image = pipe(
    prompt={verification.prompts[0]!r},
{arguments}
    generator=torch.Generator("cpu").manual_seed({settings.evaluation.seed}),
).images[0]
```

That is the first tile of the run's gallery. {_checked(verification)}

## Settings

```yaml
{settings.to_yaml().rstrip()}
```

Versions: {", ".join(f"{name} {version}" for name, version in source.manifest.versions.items())}.
"""


def _literal(value: object) -> str:
    """An argument of a call in Python; numbers without needless digits."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)


def _metadata(source: ExportSource, kind: ExportFormat, images: Sequence[str]) -> dict[str, object]:
    """The card's YAML head. A folder of the creator's own has a licence that only they know."""
    licence = "apache-2.0" if source.settings.model.folder is None else "other"
    metadata: dict[str, object] = {
        "base_model": source.base_name,
        "base_model_relation": kind.relation,
        "library_name": "diffusers",
        "license": licence,
        "pipeline_tag": "text-to-image",
        "tags": [
            "text-to-image",
            "flow-matching",
            "mixgrpo",
            "palate",
            *(["lora"] if kind.relation == "adapter" else []),
        ],
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
    rows = [
        f"| {name.replace('_', ' ')} | {before[name]:.3f} | {after[name]:.3f} |" for name in before if name in after
    ]
    evaluation = source.settings.evaluation
    return (
        f"Means over {len(tuned.images)} held-out prompts, the same seeds before and after, "
        f"{evaluation.num_steps} steps, guidance {evaluation.guidance_scale:g}.\n\n"
        f"| | base | step {source.step} |\n| --- | --- | --- |\n" + "\n".join(rows)
    )


def _means(samples: SamplesDrawn) -> dict[str, float]:
    return {**samples.rewards, **samples.metrics}


def _checked(verification: Verification) -> str:
    return f"{in_words(verification, 'Plain diffusers draws')}."
