"""Prompt files: .txt (a prompt a line), .csv (a `prompt` column) and .jsonl, parsed by the standard library alone.

The workbench previews uploads with it, the engine reads its settings' files with it, so both refuse the same things
in the same words.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 5_000_000
MAX_PROMPTS = 100_000
MAX_CHARACTERS = 2_000
MAX_HELD_OUT = 96
_LINE_END = re.compile(r"\r\n|\n|\r")


class PromptFileError(ValueError):
    """A prompt file that cannot be used, in a sentence that says where and what to do."""


@dataclass(frozen=True)
class ParsedPrompts:
    """The prompts of one file, in its order, each once."""

    prompts: tuple[str, ...]
    num_duplicates_removed: int
    notes: tuple[str, ...]


def read_prompts(path: Path) -> ParsedPrompts:
    """The prompts of a file on disk. Raises PromptFileError if it cannot be read or used."""
    try:
        # One byte past the cap is enough to refuse it, however large it is.
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PromptFileError(f"The prompt file {path} cannot be read: {error.strerror}.") from error
    return parse_prompts(path.name, data)


def parse_prompts(file_name: str, data: bytes) -> ParsedPrompts:
    """The prompts of a file's bytes, by its extension. Raises PromptFileError with one sentence."""
    extension = Path(file_name).suffix.lower()
    if extension not in _READERS:
        raise PromptFileError(f"{file_name} is not a .txt, .csv or .jsonl file; save the prompts as one of these.")
    if len(data) > MAX_BYTES:
        raise PromptFileError(
            f"{file_name} is larger than {MAX_BYTES // 1_000_000} MB; split it, or remove columns you do not need."
        )
    text = _decode(file_name, data)
    if not text.strip():
        raise PromptFileError(f"{file_name} is empty; write at least one prompt into it.")
    return _collect(file_name, _READERS[extension](file_name, text))


def hold_out(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Training prompts and held-out ones: the last fifth, 1 to 96 of them; a lone prompt is on both sides."""
    if len(prompts) < 2:
        return list(prompts), list(prompts)
    num_held_out = min(MAX_HELD_OUT, max(1, len(prompts) // 5))
    return list(prompts[:-num_held_out]), list(prompts[-num_held_out:])


def to_jsonl(prompts: Iterable[str]) -> str:
    """The prompts as .jsonl text that `parse_prompts` reads back."""
    return "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts)


def _decode(file_name: str, data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise PromptFileError(f"{file_name} is UTF-16 text; save it as UTF-8.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `utf-8-sig` counts from after the mark, which holds no line end, so the count is right either way.
        body = data.removeprefix(codecs.BOM_UTF8)
        line = _line_of(body[: error.start].decode("utf-8", errors="replace"))
        raise PromptFileError(f"{file_name}, line {line}, is not UTF-8 text; save the file as UTF-8.") from error
    if "\x00" in text:
        line = _line_of(text[: text.index("\x00")])
        raise PromptFileError(f"{file_name}, line {line}, holds a NUL byte; save the prompts as plain text.")
    return text


def _line_of(text_before: str) -> int:
    return len(_LINE_END.findall(text_before)) + 1


def _collect(file_name: str, lines: Iterable[tuple[int, str]]) -> ParsedPrompts:
    prompts: dict[str, None] = {}
    num_blank = num_duplicates = 0
    for line, raw in lines:
        prompt = raw.strip()
        if not prompt:
            num_blank += 1
            continue
        if len(prompt) > MAX_CHARACTERS:
            raise PromptFileError(
                f"{file_name}, line {line}: the prompt has {len(prompt):,} characters; use at most {MAX_CHARACTERS:,}."
            )
        if prompt in prompts:
            num_duplicates += 1
            continue
        if len(prompts) == MAX_PROMPTS:
            raise PromptFileError(f"{file_name} has more than {MAX_PROMPTS:,} prompts (line {line}); split it.")
        prompts[prompt] = None
    if not prompts:
        raise PromptFileError(f"{file_name} has no prompts; write at least one into it.")
    notes = []
    if num_duplicates:
        notes.append(f"{num_duplicates:,} duplicate {'prompt was' if num_duplicates == 1 else 'prompts were'} removed.")
    if num_blank:
        notes.append(f"{num_blank:,} empty {'line was' if num_blank == 1 else 'lines were'} skipped.")
    return ParsedPrompts(tuple(prompts), num_duplicates, tuple(notes))


def _lines(text: str) -> list[str]:
    """The lines of a text, ended as text editors end them (not at form feeds or U+2028, which a prompt may hold)."""
    lines = _LINE_END.split(text)
    return lines[:-1] if lines[-1] == "" else lines


def _txt(file_name: str, text: str) -> Iterator[tuple[int, str]]:
    yield from enumerate(_lines(text), start=1)


def _csv(file_name: str, text: str) -> Iterator[tuple[int, str]]:
    header_line = next(line for line in _lines(text) if line.strip())
    delimiter = max(",;\t", key=header_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    column: int | None = None
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if column is None:
                column = _prompt_column(file_name, row)
            else:
                yield reader.line_num, row[column] if column < len(row) else ""
    except csv.Error as error:
        # A quote that is never closed swallows the rest of the file as one field.
        raise PromptFileError(
            f"{file_name}, line {reader.line_num}, is not valid csv ({error}); check its quotation marks."
        ) from error


def _prompt_column(file_name: str, header: list[str]) -> int:
    names = [name.strip().lower() for name in header]
    if "prompt" not in names:
        found = ", ".join(f"`{name.strip()[:40]}`" for name in header[:20])
        raise PromptFileError(
            f"{file_name} has no `prompt` column; its columns are {found}. Name the column with the prompts `prompt`."
        )
    return names.index("prompt")


def _jsonl(file_name: str, text: str) -> Iterator[tuple[int, str]]:
    for line, content in enumerate(_lines(text), start=1):
        yield line, _json_prompt(f"{file_name}, line {line},", content) if content.strip() else ""


def _json_prompt(where: str, content: str) -> str:
    try:
        value = json.loads(content)
    # Deep nesting exhausts the parser's stack, very long numbers its digit limit (a ValueError).
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply or too long a number"
        raise PromptFileError(
            f'{where} is not valid JSON ({reason}); write a line such as {{"prompt": "a red circle"}}.'
        ) from error
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise PromptFileError(f'{where} has no text under "prompt"; write a line such as {{"prompt": "a red circle"}}.')
    if "\x00" in prompt or any("\ud800" <= character <= "\udfff" for character in prompt):
        raise PromptFileError(f"{where} holds a character that is no text (a NUL or half a surrogate pair); remove it.")
    return prompt


_READERS = {".txt": _txt, ".csv": _csv, ".jsonl": _jsonl}
