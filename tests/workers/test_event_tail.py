import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from engine.events import Message
from workers.event_tail import EventTail


def line(text: str) -> bytes:
    return Message(time=1.0, text=text).model_dump_json().encode() + b"\n"


def texts(tail: EventTail) -> list[tuple[int, str]]:
    return [(item.number, item.event.text) for item in tail.read() if isinstance(item.event, Message)]


def test_no_file_yet(tmp_path: Path) -> None:
    assert EventTail(tmp_path / "events.jsonl").read() == []


def test_a_torn_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    whole = line("é one") + line("two")
    path.write_bytes(whole[:-5])
    assert texts(tail) == [(1, "é one")]
    assert texts(tail) == []
    path.write_bytes(whole)
    assert texts(tail) == [(2, "two")]


def test_a_line_that_is_no_event_becomes_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "surprise"}\n\xff\xfe\n\n' + line("fine"))
    found = texts(EventTail(path))
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert found[0][1] == 'The engine wrote a line that is no event: {"kind": "surprise"}'
    assert found[3][1] == "fine"


@given(st.lists(st.text(max_size=20), max_size=8), st.lists(st.integers(1, 400), max_size=8))
def test_however_it_is_cut_every_line_is_read_once(messages: list[str], cuts: list[int]) -> None:
    data = b"".join(line(text) for text in messages)
    found: list[tuple[int, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        tail = EventTail(path)
        for end in [*sorted(cuts), len(data)]:
            path.write_bytes(data[:end])
            found += texts(tail)
    assert found == list(enumerate(messages, start=1))
