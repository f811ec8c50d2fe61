"""Reading an engine's events.jsonl while it is being written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from engine.events import Event, Message, parse_event

_MAX_BYTES = 4_000_000


@dataclass(frozen=True)
class NumberedEvent:
    """An event and its place in the file, from 1."""

    number: int
    event: Event


class EventTail:
    """The complete lines of a growing file, each once; a torn last line waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._number = 0

    def read(self) -> list[NumberedEvent]:
        """The events since the last call, at most a few MB of them; empty while there is no file."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_MAX_BYTES)
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = []
        for line in whole.splitlines():
            self._number += 1
            events.append(NumberedEvent(self._number, _parse(line)))
        return events


def _parse(line: bytes) -> Event:
    try:
        return parse_event(line.decode("utf-8"))
    except (UnicodeDecodeError, ValidationError):
        shown = line[:200].decode("utf-8", errors="replace")
        return Message(time=0.0, level="warning", text=f"The engine wrote a line that is no event: {shown}")
