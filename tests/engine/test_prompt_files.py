import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.prompt_files import (
    MAX_BYTES,
    MAX_CHARACTERS,
    MAX_PROMPTS,
    PromptFileError,
    hold_out,
    parse_prompts,
    read_prompts,
    to_jsonl,
)

A_PROMPT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=60).filter(
    lambda text: text == text.strip()
)


@pytest.mark.parametrize(
    ("name", "data", "prompts"),
    [
        ("a.txt", b"a red circle\nb\n", ("a red circle", "b")),
        ("a.TXT", b"a\r\n\r\n b \rc", ("a", "b", "c")),
        ("a.txt", b"\xef\xbb\xbfa\n", ("a",)),
        ("a.txt", b"a b\nc", ("a b", "c")),
        ("a.csv", b'id,prompt\n1,a\n2,"b, and c"\n', ("a", "b, and c")),
        ("a.csv", b"\xef\xbb\xbf Prompt ;x\r\na;1\r\nb;2\r\n", ("a", "b")),
        ("a.csv", b"x\tprompt\n1\ta\n", ("a",)),
        ("a.csv", b"x,prompt\n1\n2,b\n", ("b",)),
        ("a.csv", b'prompt\n"two\nlines"\n', ("two\nlines",)),
        ("a.jsonl", b'{"prompt": "a", "n": 1}\n\n"b"\r\n{"prompt": "\\u00e9"}', ("a", "b", "é")),
    ],
)
def test_reads(name: str, data: bytes, prompts: tuple[str, ...]) -> None:
    assert parse_prompts(name, data).prompts == prompts


def test_duplicates_go_and_are_counted() -> None:
    parsed = parse_prompts("a.txt", b"a\nb\na\n a \n\n")
    assert parsed.prompts == ("a", "b")
    assert parsed.num_duplicates_removed == 2
    assert parsed.notes == ("2 duplicate prompts were removed.", "1 empty line was skipped.")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\n", "is empty"),
        ("a.csv", b"prompt\n\n", "has no prompts"),
        ("a.csv", b"prompt,x\n,1\n", "has no prompts"),
        ("a.txt", b"good\nb\xff\n", "line 2, is not UTF-8"),
        ("a.txt", b"\xef\xbb\xbfgood\r\nmore\r\nb\xff\n", "line 3, is not UTF-8"),
        ("a.txt", "a".encode("utf-16"), "UTF-16"),
        ("a.txt", b"a\nb\x00c", "line 2, holds a NUL"),
        ("a.txt", b"a\n" + b"x" * (MAX_CHARACTERS + 1), "line 2: the prompt has 2,001 characters"),
        ("a.csv", b"id,text\n1,a", "no `prompt` column; its columns are `id`, `text`"),
        ("a.csv", b'prompt\n"never closed\n', "line 2, is not valid csv"),
        ("a.csv", b"prompt\n" + b"x" * 200_000, "line 2, is not valid csv"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "b"\n', "line 2, is not valid JSON"),
        ("a.jsonl", b'{"prompt": "a"}\n{"text": "b"}\n', 'line 2, has no text under "prompt"'),
        ("a.jsonl", b'{"prompt": 3}', "line 1, has no text"),
        ("a.jsonl", b'"\\ud800"', "line 1, holds a character that is no text"),
        ("a.jsonl", b'"\\u0000"', "line 1, holds a character that is no text"),
        ("a.jsonl", b"[" * 100_000, "line 1, is not valid JSON"),
        ("a.jsonl", b"1" * 10_000, "line 1, is not valid JSON"),
        ("a.pdf", b"a", "is not a .txt, .csv or .jsonl file"),
        ("prompts", b"a", "is not a .txt, .csv or .jsonl file"),
        ("a.txt", b"a\n" * (MAX_BYTES // 2 + 1), "is larger than 5 MB"),
        ("a.txt", b"".join(b"%d\n" % i for i in range(MAX_PROMPTS + 1)), "more than 100,000 prompts (line 100001)"),
    ],
)
def test_refuses_with_a_sentence(name: str, data: bytes, says: str) -> None:
    with pytest.raises(PromptFileError) as refused:
        parse_prompts(name, data)
    assert says in str(refused.value)
    assert str(refused.value).endswith(".")


def test_exactly_at_the_caps() -> None:
    assert len(parse_prompts("a.txt", b"x" * MAX_CHARACTERS).prompts[0]) == MAX_CHARACTERS
    data = b"".join(b"%d\n" % i for i in range(MAX_PROMPTS))
    assert len(parse_prompts("a.txt", data).prompts) == MAX_PROMPTS


@given(st.sampled_from(["a.txt", "a.csv", "a.jsonl"]), st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_any_bytes_give_prompts_or_a_sentence(name: str, data: bytes) -> None:
    try:
        parsed = parse_prompts(name, data)
    except PromptFileError:
        return
    assert parsed.prompts
    assert all(prompt.strip() == prompt and prompt and "\x00" not in prompt for prompt in parsed.prompts)
    assert len(set(parsed.prompts)) == len(parsed.prompts)


@given(st.lists(A_PROMPT, min_size=1, max_size=20, unique=True))
def test_jsonl_is_read_back(prompts: list[str]) -> None:
    assert list(parse_prompts("a.jsonl", to_jsonl(prompts).encode()).prompts) == prompts


@given(st.integers(2, 600))
def test_held_out_part(num_prompts: int) -> None:
    prompts = [str(i) for i in range(num_prompts)]
    train, held_out = hold_out(prompts)
    assert train + held_out == prompts
    assert 1 <= len(held_out) <= 96
    assert len(held_out) == max(1, min(96, num_prompts // 5))
    assert train


def test_a_lone_prompt_is_on_both_sides() -> None:
    assert hold_out(["a"]) == (["a"], ["a"])


def test_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a"}))
    assert read_prompts(tmp_path / "a.jsonl").prompts == ("a",)
    with pytest.raises(PromptFileError, match=r"cannot be read: No such file"):
        read_prompts(tmp_path / "b.txt")
