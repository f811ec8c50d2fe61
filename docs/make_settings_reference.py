"""Writes docs/guides/settings.md from `RunSettings`: every setting, its kind, range, default and meaning.

Run it by `make docs` after a change of engine/settings/; a test fails while the page is out of date.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from engine.settings import RunSettings

PAGE = Path(__file__).parent / "guides" / "settings.md"
INTRODUCTION = """\
# Settings

<!-- Written by `make docs` from engine/settings/; change that file, not this one. -->

A run is told everything by one settings file. `palate presets NAME` prints a whole one; a file of your own may leave
out whatever should keep its default. Unknown keys are refused, so a misspelt name never passes unseen.

```yaml
iterations: 200
rewards:
  - {name: vividness, weight: 1.0}
  - {name: composition, weight: 2.0}
sampling: {num_steps: 25}
window: {size: 4, strategy: progressive}
```

Beyond the ranges below: at least one reward weighs more than 0, each reward is named once (or has a label of its own),
the window leaves the last step out (`window.size` at most `sampling.num_steps` − 1), `sampling.shared_prefix` needs
`sampling.shared_noise`, `model.quantisation` needs `tuning.method: lora`, `optimiser.name: adamw_8bit` needs
`compute.sharding: none`,
`grpo.best_and_worst` is at most half of `grpo.group_size`, `method: nft` needs `sampling.shared_noise` off, there are
at most as many processes as prompts an iteration, and `compute.sharding: fsdp` needs `tuning.method: full` and equally
many prompts for every process.
"""


def page() -> str:
    """The whole reference as Markdown."""
    top = [(name, field) for name, field in RunSettings.model_fields.items() if section_of(field) is None]
    parts = [INTRODUCTION, "## The run", table("", top)]
    for name, field in RunSettings.model_fields.items():
        if section := section_of(field):
            title = f"## {name} (a list)" if is_list(field) else f"## {name}"
            parts += [title, *section_page(name, section)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def section_page(name: str, section: type[BaseModel]) -> Iterator[str]:
    """What a section says of itself, its settings, and the sections inside it."""
    yield (section.__doc__ or "").strip()
    yield table(f"{name}.", list(section.model_fields.items()))
    for inner_name, field in section.model_fields.items():
        if inner := section_of(field):
            yield f"### {name}.{inner_name}"
            yield from section_page(f"{name}.{inner_name}", inner)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The group of settings a field holds, or a list of; None for a plain value."""
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def is_list(field: FieldInfo) -> bool:
    """Whether the field is a list of groups."""
    return get_origin(field.annotation) is tuple


def table(prefix: str, fields: list[tuple[str, FieldInfo]]) -> str:
    """A Markdown table, one setting a row."""
    rows = ["| setting | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in fields:
        value = kind(field.annotation, list(field.metadata))
        rows.append(f"| `{prefix}{name}` | {value} | {default(field)} | {escape(field.description or '')} |")
    return "\n".join(rows)


def kind(annotation: Any, metadata: list[Any]) -> str:
    """What may stand there, in words: names, a range of numbers, true or false."""
    annotation, metadata = unwrapped(annotation, metadata)
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(kind(choice, metadata) for choice in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "settings of its own"
    words = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "empty"}
    word = words.get(annotation, "list")
    return f"{word} {', '.join(limits)}" if (limits := list(bounds(annotation, metadata))) else word


def unwrapped(annotation: Any, metadata: list[Any]) -> tuple[Any, list[Any]]:
    """The type inside `Annotated`, with what is said of it there added to the metadata."""
    while hasattr(annotation, "__metadata__"):
        metadata = [*metadata, *annotation.__metadata__]
        annotation = annotation.__origin__
    return annotation, metadata


def bounds(annotation: Any, metadata: list[Any]) -> Iterator[str]:
    """The limits of a number, such as ≥ 1."""
    if annotation not in (int, float):
        return
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
        for limit in (getattr(item, attribute, None) for item in flat):
            if limit is not None:
                yield f"{sign} {limit:,}".replace(",", "\N{THIN SPACE}")


def default(field: FieldInfo) -> str:
    """The default as it would stand in YAML."""
    if field.default is PydanticUndefined:
        return "(required)"
    if field.default is None or field.default in ("", ()):
        return "empty"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def escape(text: str) -> str:
    """Text that a table cell can hold."""
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}.")
