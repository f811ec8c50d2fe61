"""Prompt sets: uploaded, kept, listed. The parsing itself is `engine.prompt_files`, so both sides refuse alike."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.prompt_files import ParsedPrompts, PromptFileError, parse_prompts
from store.tables import PromptSet

__all__ = [
    "ParsedPrompts",
    "PromptFileError",
    "PromptSetSummary",
    "create_prompt_set",
    "get_prompt_set",
    "list_prompt_sets",
    "parse_prompts",
    "prompts_of",
]

MAX_NAME_CHARACTERS = 120


@dataclass(frozen=True)
class PromptSetSummary:
    """A prompt set without its prompts."""

    id: str
    name: str
    source_name: str
    num_prompts: int
    num_duplicates_removed: int
    created_at: float


def create_prompt_set(session: Session, name: str, parsed: ParsedPrompts, source_name: str) -> PromptSet:
    """Keep parsed prompts under a name. Raises ValueError for a name that is empty or too long."""
    prompt_set = PromptSet(
        name=checked_name(name, "prompt set"),
        source_name=source_name[-MAX_NAME_CHARACTERS:].replace("\x00", ""),
        num_prompts=len(parsed.prompts),
        num_duplicates_removed=parsed.num_duplicates_removed,
        prompts=list(parsed.prompts),
    )
    session.add(prompt_set)
    session.flush()
    return prompt_set


def list_prompt_sets(session: Session) -> list[PromptSetSummary]:
    """All prompt sets, newest first."""
    query = select(PromptSet).order_by(PromptSet.created_at.desc(), PromptSet.id)
    return [_summary(prompt_set) for prompt_set in session.scalars(query)]


def get_prompt_set(session: Session, prompt_set_id: str) -> PromptSetSummary | None:
    """One prompt set without its prompts, or None."""
    prompt_set = session.get(PromptSet, prompt_set_id)
    return None if prompt_set is None else _summary(prompt_set)


def prompts_of(session: Session, prompt_set_id: str) -> list[str]:
    """The prompts of a set in its file's order. Raises ValueError if there is no such set."""
    prompts = session.scalar(select(PromptSet.prompts).where(PromptSet.id == prompt_set_id))
    if prompts is None:
        raise ValueError(f"There is no prompt set {prompt_set_id}; choose another.")
    return prompts


def checked_name(name: str, of_what: str) -> str:
    """A name a person gave, trimmed. Raises ValueError with a sentence if it is empty, too long or not text."""
    name = name.strip()
    if not name:
        raise ValueError(f"Give the {of_what} a name.")
    if len(name) > MAX_NAME_CHARACTERS:
        raise ValueError(f"The name of the {of_what} has {len(name)} characters; use at most {MAX_NAME_CHARACTERS}.")
    if not name.isprintable():
        raise ValueError(f"The name of the {of_what} holds a character that cannot be shown; remove it.")
    return name


def _summary(row: PromptSet) -> PromptSetSummary:
    return PromptSetSummary(
        row.id, row.name, row.source_name, row.num_prompts, row.num_duplicates_removed, row.created_at
    )
