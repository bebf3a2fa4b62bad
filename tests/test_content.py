"""The embedded seed and evaluation sets keep the properties that the quick start's table rests on."""
from __future__ import annotations

import json
import math
import re
from collections import Counter
from importlib import resources
from itertools import combinations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from harmaug import categories, safety

Row = dict[str, object]
FIELDS = ["id", "prompt", "response", "label", "category", "source", "license"]


def load(name: str) -> list[Row]:
    data = (resources.files("harmaug") / "data" / f"{name}.jsonl").read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.decode("ascii").splitlines()]    # ASCII is UTF-8


SETS = {name: load(name) for name in ("seed", "eval")}
both = pytest.mark.parametrize("name", ["seed", "eval"])


def text_of(row: Row) -> str:
    return f"{row['prompt']}\n{row['response']}" if "response" in row else str(row["prompt"])


def grams(text: str) -> set[str]:
    folded = " ".join(text.lower().split())
    return {folded[i:i + 5] for i in range(max(1, len(folded) - 4))}


@both
def test_rows_are_well_formed(name: str) -> None:
    for number, row in enumerate(SETS[name], 1):
        assert list(row) == [f for f in FIELDS if f != "response" or "response" in row], row["id"]
        assert row["id"] == f"{name}-{number:03d}"
        assert row["label"] in (0, 1)
        assert row["category"] in categories.default_table().names
        assert (row["source"], row["license"]) == (f"harmaug-{name}", "Apache-2.0")
        for key in ("prompt", "response"):
            text = row.get(key, "-" * 20)
            assert isinstance(text, str)
            assert text == " ".join(text.split()), (row["id"], "single line, single spaces")
            assert text.isprintable()
            assert 7 <= len(text) <= 200, row["id"]


@both
def test_prompts_are_distinct(name: str) -> None:
    prompts = Counter(" ".join(re.findall(r"\w+", str(row["prompt"]).lower())) for row in SETS[name])
    assert max(prompts.values()) == 1


def test_counts() -> None:
    for name, lowest, highest in (("seed", 290, 310), ("eval", 190, 220)):
        rows = SETS[name]
        assert lowest <= len(rows) <= highest
        assert 0.4 <= sum(row["label"] == 1 for row in rows) / len(rows) <= 0.6
    assert sum("response" in row for row in SETS["seed"]) == 60
    assert sum("response" in row for row in SETS["eval"]) >= 30


def test_prompts_fit_an_exemplar_list() -> None:
    for row in SETS["seed"]:
        assert 15 <= len(str(row["prompt"])) <= 200, row["id"]


def test_every_category_can_lend_six_exemplars_of_both_kinds() -> None:
    alone = [row for row in SETS["seed"] if "response" not in row]
    unsafe = Counter(row["category"] for row in alone if row["label"] == 1)
    safe = Counter(row["category"] for row in alone if row["label"] == 0)
    assert set(unsafe) == {c.name for c in categories.default_table().categories}
    assert min(unsafe.values()) >= 10
    assert min(safe.values()) >= 6


def test_evaluation_set_spreads_over_the_categories() -> None:
    unsafe = Counter(row["category"] for row in SETS["eval"] if row["label"] == 1)
    safe = Counter(row["category"] for row in SETS["eval"] if row["label"] == 0)
    assert len(unsafe) >= 10 and min(unsafe.values()) >= 5
    assert len(safe) >= 10 and min(safe.values()) >= 5


@both
def test_pairs_carry_all_four_kinds(name: str) -> None:
    labels = Counter(row["label"] for row in SETS[name] if "response" in row)
    assert min(labels[0], labels[1]) >= 0.3 * (labels[0] + labels[1])


@both
def test_no_row_is_one_that_the_filter_blocks(name: str) -> None:
    for row in SETS[name]:
        assert safety.blocked(str(row["prompt"]), row.get("response")) is None, row["id"]  # type: ignore[arg-type]


def test_no_two_rows_are_alike() -> None:
    rows = SETS["seed"] + SETS["eval"]
    for view in (text_of, lambda row: str(row["prompt"])):
        sets = [grams(view(row)) for row in rows]
        for (a, one), (b, two) in combinations(enumerate(sets), 2):
            if min(len(one), len(two)) * 1.4 >= 0.4 * (len(one) + len(two)):    # else J <= 0.4 by size alone
                common = len(one & two)
                assert common <= 0.4 * (len(one) + len(two) - common), (rows[a]["id"], rows[b]["id"])


def test_rows_are_not_from_filled_templates() -> None:
    for name, rows in SETS.items():
        starts = Counter(tuple(str(row["prompt"]).lower().split()[:4]) for row in rows)
        assert max(starts.values()) <= math.ceil(0.02 * len(rows)), (name, starts.most_common(3))


@pytest.mark.parametrize("options", [{"ngram_range": (1, 2)}, {"ngram_range": (1, 2), "sublinear_tf": True}, {},
                                     {"analyzer": "char_wb", "ngram_range": (2, 5)}])
@pytest.mark.parametrize("c", [1.0, 10.0])
def test_bag_of_words_learned_on_the_seed_does_not_solve_the_evaluation_set(options: dict[str, object], c: float) -> None:
    vectorizer = TfidfVectorizer(**options)
    train = vectorizer.fit_transform([text_of(row) for row in SETS["seed"]])
    test = vectorizer.transform([text_of(row) for row in SETS["eval"]])
    model = LogisticRegression(C=c, max_iter=2000).fit(train, [row["label"] for row in SETS["seed"]])
    labels = np.array([row["label"] for row in SETS["eval"]])
    auprc = average_precision_score(labels, model.predict_proba(test)[:, 1])
    assert labels.mean() < auprc <= 0.85
