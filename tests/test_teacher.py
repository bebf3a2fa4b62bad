"""harmaug.teacher: scores that are checked, in order, whatever the batch."""
import numpy as np
import pytest

from harmaug import teacher
from harmaug.data import DataError, Row, RowError

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
    with pytest.raises(DataError, match=r"set, row 1: teacher short gave scores of shape \(3,\) for 4 rows from here on"):
        list(teacher.label_rows(teacher.CallableTeacher(lambda p, r: [0.5] * (len(p) - 1), "short"), ROWS, batch_size=4))


class OneByOne:
    """Row by row; `stops` at a prompt."""

    name, licence = "one by one", "MIT"

    def __init__(self, stops):
        self.stops, self.asked = stops, []

    def score_each(self, prompts, responses=None):
        for i, prompt in enumerate(prompts):
            self.asked.append(prompt)
            if prompt == self.stops:
                raise RowError(i, "too long")
            yield int(prompt) / 100


@pytest.mark.parametrize("cached", [True, False])
def test_what_is_scored_row_by_row_is_kept_when_one_fails(cache, cached):
    rows = [(f"file, row {i + 1}", Row(prompt=str(i))) for i in range(30)]
    inner, got = OneByOne("25"), []
    first = teacher.CachedTeacher(inner, "m") if cached else inner
    if cached:
        first.score(["3", "4"])
    with pytest.raises(DataError, match="^file, row 26: too long$"):
        for found in teacher.label_rows(first, rows):
            got.append(found[2])
            assert len(inner.asked) <= len(got) + 2     # each row before the next is asked for
    assert got == [i / 100 for i in range(25)]
    if cached:
        again = teacher.CachedTeacher(OneByOne(None), "m")
        assert len(list(teacher.label_rows(again, rows))) == 30 and again.teacher.asked == ["25", "26", "27", "28", "29"] and again.account == {"cached": 25}


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


def test_wrong_scores_are_not_kept(cache):
    with pytest.raises(DataError, match=r"set, row 1: teacher one gave scores of shape \(1,\) for 50 rows"):
        list(teacher.label_rows(teacher.CachedTeacher(teacher.CallableTeacher(lambda p, r: [0.7], "one"), "m"), ROWS))
    with pytest.raises(DataError, match=r"set, row 2: the score of teacher high must be in \[0, 1\], got 1.7"):
        high = teacher.CallableTeacher(lambda p, r: [1.7 if x == "r" else 0.2 for x in r], "high")
        list(teacher.label_rows(teacher.CachedTeacher(high, "m"), ROWS))
    mended = teacher.CachedTeacher(teacher.CallableTeacher(lambda p, r: [0.5] * len(p), "high"), "m")
    assert [score for *_, score in teacher.label_rows(mended, ROWS[:4])] == [0.2, 0.5, 0.2, 0.5]


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
    path.write_text('{"prompt": "a", "label": 1, "score": 0.25, "flagged": false}\n')        # what harmaug score writes
    assert teacher.ScoresTeacher(path).score(["a"]).tolist() == [0.25]
    for rest, message in (('"unsafe-score": 1', "row 1: no unsafe-score"), ('"label": 0', "row 2: no score"),
                          ('"score": 2', r"row 2: score must be a number in \[0, 1\], got 2")):
        with path.open("a") as out:
            out.write(f'{{"prompt": "b", {rest}}}\n')
        with pytest.raises(DataError, match=f"scores.jsonl, {message}"):
            teacher.ScoresTeacher(path)
        path.write_text(path.read_text().splitlines()[0] + "\n")
    lines = [f'{{"prompt": "{prompt}", "response": "{response}", "unsafe-score": {score}}}\n'
             for prompt, response, score in (("QUJD", "", 0.9), ("qujd", "", 0.1), ("q", "  ", 0.3), ("q", "", 0.6), ("One", "", 0.5))]
    path.write_text("".join(lines))
    file = teacher.ScoresTeacher(path)
    assert file.score(["QUJD", "qujd", "q", "q", "one"], ["", None, "  ", None, None]).tolist() == pytest.approx([0.9, 0.1, 0.3, 0.6, 0.5])
    with pytest.raises(DataError, match="here, row 2: scores.jsonl has it in other letter case or spacing only, with 2 different scores"):
        list(teacher.label_rows(file, [("here, row 1", Row(prompt="q")), ("here, row 2", Row(prompt="Qujd"))]))
    path.write_text(lines[0] + lines[0].replace("0.9", "0.8"))
    with pytest.raises(DataError, match="scores.jsonl, row 2: another unsafe-score than an earlier row of the same texts"):
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
    assert "1 human labels: kappa -, accuracy 1.000; it contradicts 0," in teacher.describe_audit(teacher.audit([Row(prompt="x", label=1, unsafe_score=0.9)]))


@pytest.mark.parametrize("text, licence", [
    ("license: other\nlicense_name: llama3", "llama3"), ('license: "apache-2.0"', "apache-2.0"), ("license: [mit, gpl]", "mit, gpl"),
    ("license:\n- mit\n- 'cc-by-4.0'\ntags:\n- x", "mit, cc-by-4.0"), ("license: other", "other"), ("tags: [license]", "unknown"), ("license:", "unknown"),
])
def test_the_licence_of_a_card(tmp_path, text, licence):
    (tmp_path / "README.md").write_text(f"---\n{text}\n---\nlicense: below\n")
    assert teacher.licence_of(tmp_path) == licence
