import pytest

from store.database import Database
from store.prompt_sets import create_prompt_set, get_prompt_set, list_prompt_sets, parse_prompts, prompts_of


def test_a_set_is_kept_as_uploaded(either_database: Database) -> None:
    parsed = parse_prompts("mine.txt", "a\nb ❄\na\n'; DROP TABLE run; --\n".encode())
    with either_database.write() as session:
        first = create_prompt_set(session, " Mine ", parsed, "mine.txt").id
        second = create_prompt_set(session, "Other", parse_prompts("o.txt", b"c"), "o.txt").id
    with either_database.read() as session:
        assert prompts_of(session, first) == ["a", "b ❄", "'; DROP TABLE run; --"]
        found = get_prompt_set(session, first)
        assert found is not None
        assert (found.name, found.source_name, found.num_prompts, found.num_duplicates_removed) == (
            "Mine", "mine.txt", 3, 1,
        )  # fmt: skip
        assert {row.id for row in list_prompt_sets(session)} == {first, second}
        assert get_prompt_set(session, "nothing") is None
        with pytest.raises(ValueError, match="There is no prompt set"):
            prompts_of(session, "nothing")


@pytest.mark.parametrize(("name", "says"), [("  ", "Give"), ("x" * 121, "121 char"), ("a\x07b", "cannot be shown")])
def test_names(database: Database, name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says), database.write() as session:
        create_prompt_set(session, name, parse_prompts("a.txt", b"a"), "a.txt")
