"""Text files that are there whole or not at all, whenever the process that writes them is killed (torch-free)."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write or replace a file; until it is complete, a reader finds what was there before."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
