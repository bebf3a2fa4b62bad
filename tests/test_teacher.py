"""harmaug.teacher and harmaug.engines: scores that are checked, in order, whatever the batch."""
import numpy as np
import pytest

from harmaug import engines, teacher
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
    with pytest.raises(TypeError, match="a teacher must be a folder, a guard or a callable, got int"):
        teacher.as_teacher(3)


def test_map_rows_keeps_order_and_streams():
    seen = []

    def rows():
        for i in range(10):
            seen.append(i)
            yield i

    mapped = engines.map_rows(lambda batch: (x * x for x in batch), rows(), batch_size=4)
    assert next(mapped) == (0, 0) and seen == [0, 1, 2, 3]
    assert list(mapped) == [(i, i * i) for i in range(1, 10)]
    with pytest.raises(ValueError, match="engine must be 'local', got 'ray': this version has no other"):
        list(engines.map_rows(list, [1], engine="ray"))
    with pytest.raises(RuntimeError, match="gave 1 results for 2 rows"):
        list(engines.map_rows(lambda batch: [1], [1, 2]))
    with pytest.raises(RuntimeError, match="gave more than 2 results for 2 rows"):
        list(engines.map_rows(lambda batch: [1, 2, 3], [1, 2]))
