"""The responsible-use filter: what it must catch however it is written, and what it must let through."""
from __future__ import annotations

import hashlib
import unicodedata

import pytest
from fake_generator import FakeGenerator
from hypothesis import given, settings
from hypothesis import strategies as st

from harmaug import safety
from harmaug.augment import AugmentConfig, Augmenter
from harmaug.data import Row

# The shortest texts that show each rule; nothing here says more than that two words meet.
CAUGHT = [
    "a sexual text about a child",
    "an erotic piece, the girl is 15",
    "sexy 14-year-old",
    "nude photos of a sixteen year old",
    "romantic relationship with a 13 yo",
    "dating someone under the age of 18",
    "teen porn",
    "sexting with a minor",
    "an explicit scene in a high school",
    "naked, aged 12",
    "a seventh grade class and nudity",
    "CSAM",
    "childporn",
    "what is the age of consent",
    "the student undresses",
    "lewd (she is only 16)",
    "NSFW f15",
    "seduce a classmate",
    "a sex education video with a naked pupil",
    "a sexual education story about kids",
    "smut, 13-15 yr olds",
    "lewd (14yrs)",
    "she was 12 years when he seduced her",
    "six years of age, naked",
    "passionate kiss, 9th grader",
    "kissing a pupil on the lips",
    "erotica with an elf who is twelve",
    "\uff11\uff14 years old, nude",
]
DISGUISED = [
    "s3xual ch1ld",
    "s e x with a k i d",
    "s.e.x and t.e.e.n",
    "p0rn, und3rage",
    "s\u200bex \u200bc\u00adhild",
    "\uff53\uff45\uff58 \uff43\uff48\uff49\uff4c\uff44",
    "s\u0435x t\u0435en",
    "SEXXXY TEEEN",
    "se-x, chi-ld",
    "s\u00e9x chil\u0301d",
    "under_age se*x",
]
PASSED = [
    "How do I kill a Python process?",
    "Outline a sex education curriculum for teachers",
    "Which vaccines does a child need before school?",
    "A minor key melody",
    "Write a breakup text for two adults",
    "Explain same-sex marriage law to high school students",
    "Breast milk storage for newborns",
    "What does erotic mean?",
    "Sexual harassment law for employers",
    "Kidnapping laws in Ohio",
    "He was 25 and she was 31 when they began dating",
    "The sextant was used by youths at sea",
    "Nudge theory for school canteens",
    "Minority rights and sexism at work",
    "Our 15 minute dating podcast",
    "We have been dating for 3 years",
    "Our sex life changed 12 years ago, after the wedding",
    "an erotic poem about a woman who is nineteen",
    "",
]


@pytest.mark.parametrize("text", CAUGHT + DISGUISED)
def test_blocked_catches(text: str) -> None:
    assert safety.blocked(text) == safety.SEXUAL_MINORS


@pytest.mark.parametrize("text", PASSED)
def test_blocked_passes(text: str) -> None:
    assert safety.blocked(text) is None


def test_blocked_reads_prompt_and_response_together() -> None:
    assert safety.blocked("a story about a child", "then it became sexual") == safety.SEXUAL_MINORS
    assert safety.blocked("a story about a child", None) is None
    assert safety.blocked(None, "") is None
    assert safety.blocked() is None


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_blocked_does_not_depend_on_the_normal_form_or_case(form: str) -> None:
    for text in CAUGHT:
        assert safety.blocked(unicodedata.normalize(form, text.upper())) == safety.SEXUAL_MINORS


DISGUISES = {
    "invisible": lambda c: c + "\u200b", "soft hyphen": lambda c: "\u00ad" + c, "accent": lambda c: c + "\u0301" if c.isalpha() else c,
    "upper": str.upper, "wide": lambda c: chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c, "bold": lambda c: chr(0x1D41A + ord(c) - 97) if "a" <= c <= "z" else c,
    "selector": lambda c: c + "\ufe0f", "as it is": str,
}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_blocked_sees_through_any_mix_of_disguises(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(CAUGHT))
    chosen = data.draw(st.lists(st.sampled_from(sorted(DISGUISES)), min_size=len(text), max_size=len(text)))
    assert safety.blocked("".join(DISGUISES[name](c) for name, c in zip(chosen, text))) == safety.SEXUAL_MINORS


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=200))
def test_no_text_breaks_the_filter(text: str) -> None:
    assert safety.blocked(text) in (None, safety.SEXUAL_MINORS)
    assert safety.is_cbrne(text) in (False, True)
    assert len(safety.digest(text)) == 64


def test_blocked_catches_every_age_below_18_and_none_above() -> None:
    for age in range(18):
        assert safety.blocked(f"sexual, {age} years old"), age
        assert safety.blocked(f"sexual, a {age}-year-old"), age
    for age in range(18, 100):
        assert safety.blocked(f"sexual, {age} years old") is None, age


def test_blocked_is_quick_on_long_and_hostile_text() -> None:
    for text in ("a " * 50_000, "a-" * 50_000, "1" * 100_000, "\u0301" * 100_000, "teen " * 20_000, "\ud800 sex kid"):
        safety.blocked(text)
    assert safety.blocked("\ud800 sex kid") == safety.SEXUAL_MINORS


def test_digest_is_sha256_of_utf8() -> None:
    assert safety.digest("h\u00e9") == hashlib.sha256("h\u00e9".encode()).hexdigest()
    assert len(safety.digest("\ud800")) == 64


@pytest.mark.parametrize("text", [
    "How do I build a bomb?", "making b0mbs", "an explosive device", "release a nerve agent", "anthrax by mail",
    "a dirty bomb", "enriched uranium", "toxic gas attack", "poison the water supply", "pathogens at home", "C-4"])
def test_cbrne_text(text: str) -> None:
    assert safety.is_cbrne(text)


@pytest.mark.parametrize("text", ["How do I steal a bicycle?", "Write a phishing mail", "Bully a coworker", ""])
def test_cbrne_lets_other_text_through(text: str) -> None:
    assert not safety.is_cbrne(text)
    assert not safety.is_cbrne(text, "theft")


@pytest.mark.parametrize("category", ["weapons", "CBRN", " Explosives "])
def test_cbrne_category_counts_without_the_text(category: str) -> None:
    assert safety.is_cbrne("a plain text", category)


def test_a_row_counts_with_its_category() -> None:
    row = Row(prompt="Tell me about the weather", category="child_sexual_abuse")
    assert safety.blocked_row(row) == safety.SEXUAL_MINORS
    assert safety.blocked_row(Row(prompt="Tell me about the weather", category="weather")) is None
    assert safety.blocked_row(Row(prompt="a text about a child", response="sexual")) == safety.SEXUAL_MINORS


def test_no_exemplar_and_no_prompt_comes_from_a_blocked_row() -> None:
    fine = [Row(prompt=f"Tell me how to steal item number {i}", label=1, category="theft") for i in range(8)]
    bad = [Row(prompt=f"An ordinary request, number {i}", label=1, category="sexual content about minors") for i in range(8)]
    bad += [Row(prompt=f"{text}, text number {i}", label=1, category="theft") for i, text in enumerate(CAUGHT)]
    augmenter = Augmenter(FakeGenerator(), AugmentConfig(samples=64, benign=0))
    rows = list(augmenter.run(fine + bad))
    assert augmenter.account_["seeds_blocked"] == len(bad)
    prompts = [draw.prompt for draw in augmenter.draws(fine)]
    assert rows and all(safety.blocked(prompt) is None and "ordinary" not in prompt for prompt in prompts)
    assert {row.category for row in rows} == {"theft"}
