"""What a form field must know of a setting: kind, bounds, choices and help come from the pydantic fields themselves."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from engine.settings import RunSettings

Kind = Literal["integer", "number", "choice", "switch", "text"]


@dataclass(frozen=True)
class FieldShape:
    """What a widget must know of one setting. Bounds are inclusive; None is no bound."""

    kind: Kind
    help: str
    minimum: float | None = None
    maximum: float | None = None
    options: tuple[Any, ...] = ()


def describe(path: str, model: type[BaseModel] = RunSettings) -> FieldShape:
    """The shape of the setting at a dotted path. Raises KeyError if there is none."""
    name, _, rest = path.partition(".")
    field = model.model_fields[name]
    if rest:
        section = field.annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        return describe(rest, section)
    return _shape(field)


def _shape(field: FieldInfo) -> FieldShape:
    text = field.description or ""
    annotation, metadata = field.annotation, list(field.metadata)
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata += [item for extra in more for item in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
    if get_origin(annotation) is Literal:
        return FieldShape("choice", text, options=get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return FieldShape("text", text)
    if annotation is bool:
        return FieldShape("switch", text)
    if annotation in (int, float):
        integer = annotation is int
        return FieldShape("integer" if integer else "number", text, *_bounds(metadata, integer))
    return FieldShape("text", text)


def _bounds(metadata: Sequence[object], integer: bool) -> tuple[float | None, float | None]:
    """Inclusive bounds; an exclusive bound of an integer moves by one, that of a float is left to validation."""
    low: float | None = None
    high: float | None = None
    for item in metadata:
        for name, value in ((name, getattr(item, name, None)) for name in ("ge", "gt", "le", "lt")):
            if value is None:
                continue
            inclusive = name in ("ge", "le") or not integer
            if name in ("ge", "gt"):
                low = value if inclusive else value + 1
            else:
                high = value if inclusive else value - 1
    return low, high
