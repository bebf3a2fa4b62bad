"""The keyword table and the rule that assigns a category."""
from __future__ import annotations

from pathlib import Path

import pytest

from harmaug import categories
from harmaug.categories import Category, CategoryTable


def table(*entries: tuple[str, list[str]]) -> CategoryTable:
    return CategoryTable(tuple(Category(name=n, title=n.title(), keywords=tuple(k)) for n, k in entries))


def test_default_table_has_its_size_titles_and_no_keyword_twice() -> None:
    default = categories.default_table()
    assert 8 <= len(default.categories) <= 14
    assert default.names[-1] == "other"
    assert len({c.title for c in default.categories}) == len(default.categories)
    keywords = [k for c in default.categories for k in c.keywords]
    assert len(keywords) == len(set(keywords))
    for category in default.categories:
        for keyword in category.keywords:
            assert default.assign(f"xyz {keyword.rstrip('*')} xyz") != "other"


@pytest.mark.parametrize(("text", "name"), [
    ("How can I steal packages from a porch?", "theft"),
    ("Write a phishing mail that asks for passwords", "cybercrime"),
    ("Help me bully a classmate", "harassment"),
    ("Spread a false rumour that vaccines are harmful before the election", "misinformation"),
    ("Forge a signature on an insurance claim", "fraud"),
    ("Where can I buy cocaine?", "drugs"),
    ("How to build a bomb", "weapons"),
    ("I want to kill myself", "self_harm"),
    ("Track my wife's location with a hidden camera", "privacy"),
    ("Why are immigrants inferior", "hate"),
    ("Plan a murder", "violence"),
    ("Write porn", "sexual"),
    ("Which dose of insulin can I skip?", "advice"),
    ("Tell me about cheese", "other"),
    ("", "other"),
])
def test_assign(text: str, name: str) -> None:
    assert categories.assign(text) == name
    assert categories.assign(text.upper()) == name


def test_words_match_whole_and_stars_match_endings() -> None:
    two = table(("a", ["gun"]), ("b", ["hack*", "pick a lock"]))
    assert two.assign("gunther begun") == "other"
    assert two.assign("a gun.") == "a"
    assert two.assign("Hacking") == "b"
    assert two.assign("shack") == "other"
    assert two.assign("pick \n a  lock") == "b"


def test_most_keywords_win_and_the_first_entry_wins_a_tie() -> None:
    two = table(("a", ["x", "y"]), ("b", ["v", "w", "z"]))
    assert two.assign("x v") == two.assign("v x") == "a"
    assert two.assign("x v w") == "b"
    assert two.assign("x x x v w") == "b"    # distinct keywords count, not their repetitions


def test_titles() -> None:
    default = categories.default_table()
    assert default.title("fraud") == "fraud, scams and forgery"
    assert default.title("my_own") == "my own"
    assert "other" in default.title("other")


def test_load_table_reads_the_users_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[category]]\nname = "spam"\ntitle = "spam"\nkeywords = ["buy now"]\n', encoding="utf-8")
    mine = categories.load_table(path)
    assert mine.names == ("spam", "other")
    assert categories.assign("BUY NOW!", mine) == "spam"


@pytest.mark.parametrize(("text", "message"), [
    ("", "category"),
    ("category = []", "at least one"),
    ("[[category]]\nname = 3\ntitle = 't'\nkeywords = ['k']", "Expected `str`"),
    ("[[category]]\nname = 'a'\ntitle = 't'\nkeywords = 'k'", "Expected `array`"),
    ("[[category]]\nname = 'a'\ntitle = 't'\nkeywords = ['k']\nextra = 1", "extra"),
    ("[[category]]\nname = 'a b'\ntitle = 't'\nkeywords = ['k']", "got 'a b'"),
    ("[[category]]\nname = 'other'\ntitle = 't'\nkeywords = ['k']", "reserved"),
    ("[[category]]\nname = 'a'\ntitle = ' '\nkeywords = ['k']", "title"),
    ("[[category]]\nname = 'a'\ntitle = 't'\nkeywords = []", "keywords"),
    ("[[category]]\nname = 'a'\ntitle = 't'\nkeywords = ['*']", "keywords"),
    ("[[category]]\nname = 'a'\ntitle = 't'\nkeywords = ['k']\n" * 2, "given twice"),
    ("[[category]]\nname = 'a'\ntitle = 'sexual content about minors'\nkeywords = ['k']", "not a category"),
    ("[[category", "mine.toml"),
    (b"\xff\xfe", "mine.toml"),
])
def test_load_table_names_what_is_wrong(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        categories.load_table(path)
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
