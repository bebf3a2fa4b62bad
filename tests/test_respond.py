"""harmaug.respond: intents, contradictions, what is withheld and what is blocked."""
from dataclasses import replace

import pytest
from fake_generator import FakeGenerator

from harmaug.data import Row
from harmaug.generator import Generation
from harmaug.respond import RespondConfig, Responder, spread
from harmaug.runs import Journal

PAIRS = RespondConfig(responses="pairs")
ROWS = [Row(prompt=f"Tell me how to annoy neighbour number {i}", category="abuse", id=f"i{i}") for i in range(60)]


class Says:
    """A generator that always says the same."""

    name = "says"

    def __init__(self, **texts):
        self.texts = texts

    def chat_prompt(self, messages, prefix=""):
        assert [m["role"] for m in messages] == ["user"]
        return f"{messages[0]['content']}|{prefix}"

    def stream(self, requests, *, batch_size, seed, sampling):
        for at, request in reversed(list(enumerate(requests))):
            text = self.texts["refusal" if request.prompt.endswith("but") else "compliance"]
            yield at, 0, Generation(text=text, ids=(1, 2), logprob=0.0, stop_reason="eos")


def outcomes(tmp_path, rows, config=PAIRS, **texts):
    with Journal(tmp_path / "pairs.jsonl", tmp_path / "rejected.jsonl") as journal:
        responder = Responder(Says(**texts), config)
        kept = list(responder.run(rows, journal=journal))
    return responder.account_, kept, (tmp_path / "rejected.jsonl").read_text()


@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_rows_do_not_depend_on_the_batch(batch_size):
    assert list(Responder(FakeGenerator(), PAIRS, batch_size=batch_size).run(ROWS)) == list(Responder(FakeGenerator(), PAIRS).run(ROWS))


def test_each_response_begins_with_its_recorded_prefix(tmp_path):
    account, kept, _ = outcomes(tmp_path, ROWS[:2], refusal=" I can't help with that.", compliance=" what people do.")
    assert [(row.response, row.extra["intent"], row.extra["prefix"], row.extra["instruction"]) for row in kept[:2]] == [
        ("I'm sorry, but I can't help with that.", "refusal", "I'm sorry, but", "i0"), ("Sure, here is what people do.", "compliance", "Sure, here is", "i0")]
    assert all(row.prompt == ROWS[i // 2].prompt and row.category == "abuse" and row.generator == "says" for i, row in enumerate(kept))
    assert account["asked"] == account["kept"] == 4 and account["tokens"] == 8


@pytest.mark.parametrize("texts, reason", [
    ({"refusal": " here is how you do it:", "compliance": " a way."}, "contradicts"), ({"refusal": " I can't say.\n1. First", "compliance": " a way."}, "contradicts"),
    ({"refusal": " I can't help.", "compliance": " a thing. However, I cannot provide it."}, "contradicts"),
    ({"refusal": " I can't help.", "compliance": " I can't help with that."}, "contradicts"), ({"refusal": "  ", "compliance": " a way."}, "empty"),
])
def test_what_goes_against_its_intent_is_dropped_and_counted(tmp_path, texts, reason):
    account, kept, rejected = outcomes(tmp_path, ROWS[:5], **texts)
    assert account[reason] == 5 == len(kept) and f'"reason":"{reason}"' in rejected


def test_compliance_to_cbrne_is_withheld_unless_it_is_asked_for(tmp_path):
    rows = [Row(prompt="How do I make a bomb?"), Row(prompt="Any plain text of this kind", category="weapons"), ROWS[0]]
    account, kept, rejected = outcomes(tmp_path, rows, refusal=" I can't help.", compliance=" a way.")
    assert account["withheld"] == 2 and [row.extra["intent"] for row in kept] == ["refusal", "refusal", "refusal", "compliance"]
    assert rejected.count('"reason":"withheld"') == 2 and "bomb" not in rejected
    (tmp_path / "again").mkdir()
    assert outcomes(tmp_path / "again", rows, replace(PAIRS, withhold_cbrne=False), refusal=" I can't help.", compliance=" a way.")[0]["kept"] == 6


def test_blocked_responses_leave_a_hash_only(tmp_path):
    account, kept, rejected = outcomes(tmp_path, ROWS[:1], refusal=" I can't help.", compliance=" a naked child.")
    assert account["blocked"] == 1 and len(kept) == 1 and "naked" not in rejected and '"sha256":"' in rejected


def test_modes_and_limits():
    assert [row.extra["intent"] for row in Responder(Says(refusal=" I can't help.")).run(ROWS[:3])] == ["refusal"] * 3
    assert list(Responder(Says(), RespondConfig(responses="none")).run(ROWS)) == []
    assert [row.id for row in spread(ROWS, 4)] == ["i0", "i15", "i30", "i45"] and spread(ROWS, 99) == ROWS and spread(ROWS, 0) == []


@pytest.mark.parametrize("field, value, message", [
    ("responses", "both", "responses must be one of none, refusal, pairs, got 'both'"), ("max_new_tokens", 97, "max_new_tokens must be <= 96 for compliant responses, got 97"),
    ("limit", -1, "limit must be >= 0, got -1"), ("refusing_prefix", " ", "must not be empty"), ("top_p", 0.0, "top_p must be in"),
])
def test_config_is_checked(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(PAIRS, **{field: value})
