"""The row stages with the real generator: HARMAUG_MODELS names the folder that `harmaug models fetch smollm2 --to` filled."""
from dataclasses import replace
from importlib import resources

import pytest

from harmaug.augment import AugmentConfig, Augmenter
from harmaug.data import read_rows
from harmaug.generator import CausalLM
from harmaug.respond import RespondConfig, Responder

CONFIG = AugmentConfig(samples=16, benign=8)


@pytest.fixture(scope="module")
def lm():
    return CausalLM.from_pretrained("smollm2")


@pytest.fixture(scope="module")
def sets():
    return [read_rows(str(resources.files("harmaug") / "data" / name)) for name in ("seed.jsonl", "eval.jsonl")]


def run(lm, sets, config=CONFIG, **options):
    augmenter = Augmenter(lm, config, **options)
    return augmenter.account_, list(augmenter.run(*sets)), augmenter


def test_rows_do_not_depend_on_the_batch_and_most_are_kept(lm, sets):
    _, rows, augmenter = run(lm, sets, batch_size=32)
    for batch_size in (1, 8):
        assert run(lm, sets, batch_size=batch_size)[1] == rows
    assert augmenter.account_["kept"] == len(rows) >= 18     # 97 % of larger draws are kept
    assert {row.extra["kind"] for row in rows} == {"harmful", "benign"}


def test_the_papers_recipe_begins_the_answer(lm, sets):
    """A model that never refuses: most of what is lost is cut at the token limit, nothing is refused."""
    account = run(lm, sets, replace(CONFIG, recipe="paper", samples=16, benign=0, max_new_tokens=64))[2].account_
    assert account["done"] == 16 and account["refused"] <= 2 and account["kept"] >= 4


def test_prefixes_decide_what_is_answered(lm, sets):
    """Unasked this model refuses nothing; behind the prefixes most responses keep to their intent."""
    instructions = [row for row in sets[0] if row.response is None and row.label == 1][:24]
    responder = Responder(lm, RespondConfig(responses="pairs", max_new_tokens=40))
    rows = list(responder.run(instructions))
    account = responder.account_
    assert account["done"] == 48 == account["kept"] + account["withheld"] + account["contradicts"] + account["blocked"] + account["empty"]
    assert account["refusal"] >= 14 and account["compliance"] + account["withheld"] >= 14
    assert all(row.response.startswith(row.extra["prefix"]) and row.extra["tokens"] <= 40 for row in rows)
