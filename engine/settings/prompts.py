"""Where prompts come from."""

from __future__ import annotations

from pydantic import Field

from engine.settings.section import Section


class PromptSettings(Section):
    """Where the prompts come from. Without files: the built-in prompts and their held-out part."""

    file: str | None = Field(
        None, description="Training prompts: a .txt (a line each), .csv or .jsonl file; empty = the built-in prompts."
    )
    evaluation_file: str | None = Field(
        None, description="Held-out prompts; empty = the last fifth of `file`, or the built-in held-out prompts."
    )
    seed: int = Field(0, ge=0, description="Seed of the order of prompts and of the built-in prompt draw.")
