"""harmaug.teacher: scores that are checked, in order, whatever the batch."""
import numpy as np
import pytest

from harmaug import teacher
from harmaug.data import DataError, Row

ROWS = [(f"set, row {i + 1}", Row(prompt="p" * (i % 9 + 1), response="r" if i % 2 else None)) for i in range(50)]


def lengths(prompts, responses):
    return [len(prompt) / 10 + (0.05 if response else 0) for prompt, response in zip(prompts, responses)]


@pytest.mark.parametrize("batch_size", [1, 7, 50, 256])
def test_scores_come_in_order_whatever_the_batch(batch_size):
    got = list(teacher.label_rows(teacher.as_teacher(lengths), ROWS, batch_size=batch_size))
    assert [(where, row) for where, row, _ in got] == ROWS
    assert [score for *_, score in got] == pytest.approx(lengths([row.prompt for _, row in ROWS], [row.response for _, row in ROWS]), abs=1e-7)
    assert got[0][2] == 0.1     # the shortest decimal, not 0.10000000149


@pytest.mark.parametrize("bad, message", [(np.nan, "got nan"), (1.5, "got 1.5"), (-0.1, "got -0.1"), (np.inf, "got inf")])
def test_a_score_that_is_none_names_the_row(bad, message):
    def score(prompts, responses):
        return [0.5 if len(prompt) < 9 else bad for prompt in prompts]

    with pytest.raises(DataError, match=rf"set, row 9: the score of teacher score must be in \[0, 1\], {message}"):
        list(teacher.label_rows(teacher.as_teacher(score), ROWS, batch_size=4))


def test_too_few_scores_are_named():
    with pytest.raises(DataError, match=r"teacher short: scores of shape \(3,\) for 4 rows from set, row 1 on"):
        list(teacher.label_rows(teacher.CallableTeacher(lambda p, r: [0.5] * (len(p) - 1), "short"), ROWS, batch_size=4))


def test_as_teacher():
    class Scores:
        def score(self, prompts, responses=None):
            return [0.5] * len(prompts)

    assert teacher.as_teacher(Scores()).name == "Scores" and teacher.as_teacher(Scores()).score(["a"]).dtype == np.float32
    named = teacher.CallableTeacher(lengths, "mine", "MIT")
    assert teacher.as_teacher(named) is named and teacher.describe(named) == {"name": "mine", "licence": "MIT"}
    assert named.score(["a"]) == np.float32(0.1)
    with pytest.raises(TypeError, match="a scorer must be a guard, a pipeline of transformers, a function, .*, got int"):
        teacher.as_teacher(3)


# -- scores kept by content --


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARMAUG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def counting():
    seen = []

    def score(prompts, responses):
        seen.extend(zip(prompts, responses))
        return lengths(prompts, responses)

    return teacher.CallableTeacher(score, "counted", "MIT"), seen


def test_scores_are_kept_by_content_and_teacher(cache):
    inner, seen = counting()
    first = teacher.CachedTeacher(inner, "model 1")
    rows = list(zip(*[("a", None), ("a", ""), ("a", "b"), ("ab", None)]))
    want = inner.score(*rows)
    seen.clear()
    assert np.array_equal(first.score(*rows), want) and len(seen) == 4 and first.account == {"cached": 0}
    again = teacher.CachedTeacher(inner, "model 1")     # another run
    assert np.array_equal(again.score(*rows), want) and len(seen) == 4 and again.account == {"cached": 4}
    assert (again.name, again.licence) == ("counted", "MIT")
    teacher.CachedTeacher(inner, "model 2").score(*rows)
    assert len(seen) == 8
    again.score(["new", "a"])
    assert seen[8:] == [("new", None)]
    assert (cache / "teacher_scores.sqlite").stat().st_mode & 0o777 == 0o600
    assert b"new" not in (cache / "teacher_scores.sqlite").read_bytes()


@pytest.mark.parametrize("spoil", ["off", "damaged", "file in the way"])
def test_without_a_cache_every_row_is_scored(cache, monkeypatch, spoil):
    if spoil == "off":
        monkeypatch.setenv("HARMAUG_CACHE", "")
    elif spoil == "damaged":
        cache.mkdir()
        (cache / "teacher_scores.sqlite").write_bytes(b"no database" * 100)
    else:
        cache.write_text("")
    inner, seen = counting()
    for n in (1, 2):
        assert teacher.CachedTeacher(inner, "m").score(["a"]) == np.float32(0.1) and len(seen) == n


def test_a_file_of_scores(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text('{"prompt": "a", "unsafe-score": 0.25}\n{"prompt": "a", "response": "b", "unsafe-score": 1}\n')
    file = teacher.ScoresTeacher(path, licence="CC0-1.0")
    assert file.score(["a", "a"], ["b", None]).tolist() == [1, 0.25] and file.name == "scores.jsonl"
    with pytest.raises(DataError, match=r"here, row 1: the score of teacher scores.jsonl must be in \[0, 1\], got nan"):
        list(teacher.label_rows(file, [("here, row 1", Row(prompt="c"))]))
    path.write_text('{"prompt": "a", "label": 1}\n')
    with pytest.raises(DataError, match=r"scores.jsonl, row 1: no unsafe-score"):
        teacher.ScoresTeacher(path)


# -- agreement with human labels --


def test_audit_against_scikit_learn():
    from sklearn import metrics

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = np.clip(labels * 0.4 + rng.random(200) * 0.6, 0, 1)
    rows = [Row(prompt="x", label=int(y), unsafe_score=float(s), id=i) for i, (y, s) in enumerate(zip(labels, scores))]
    rows.insert(7, Row(prompt="no label", unsafe_score=1.0))
    found = teacher.audit(rows, worst=5)
    assert found["kappa"] == pytest.approx(metrics.cohen_kappa_score(labels, scores >= 0.5))
    assert found["auprc"] == pytest.approx(metrics.average_precision_score(labels, scores)) and found["n"] == 200
    wrong = found["disagreements"]
    assert len(wrong) == 5 and all((item["score"] >= 0.5) != item["label"] for item in wrong)
    gaps = [abs(item["score"] - item["label"]) for item in wrong]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] == max(abs(scores - labels)[(scores >= 0.5) != labels])
    assert all(rows[item["row"] - 1].id == item["id"] for item in wrong)
    assert teacher.audit([Row(prompt="x")]) == {}
    assert teacher.audit([Row(prompt="x", label=1, unsafe_score=0.9)])["kappa"] is None
