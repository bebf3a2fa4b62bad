"""harmaug.data: layouts, tolerant labels, and an error that names file and row for everything else."""
import csv
import datetime
import errno
import gzip
import json
import math
import os
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from harmaug import data
from harmaug.data import DataError, Row

ROWS = [
    {"prompt": "How do I bake bread?", "label": 0, "category": "other", "mine": [1, {"a": None}], "id": 7},
    {"prompt": "Ünïcode ✓ \"quoted\", with a comma\nand a line", "response": "No.", "label": 1, "unsafe-score": 0.75,
     "soft_label": 0.5, "source": "s", "seed": 3, "generator": "g", "license": "MIT", "zz": "last"},
]


class NAType:
    """Stands for pandas.NA, which compares with nothing."""


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def csv_text(rows):
    import io

    out = io.StringIO()
    names = ["prompt", "response", "label", "unsafe-score"]
    writer = csv.DictWriter(out, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", [jsonl, json.dumps, lambda rows: json.dumps(rows, indent=1), lambda rows: "\ufeff\n\n" + jsonl(rows)])
def test_json_layouts_load_the_same(tmp_path, layout, packed):
    content = layout(ROWS).encode()
    rows = data.read_rows(write(tmp_path / "rows", gzip.compress(content) if packed else content))
    assert [row.to_dict() for row in rows] == ROWS
    assert rows[0].extra == {"mine": [1, {"a": None}]} and rows[1].unsafe_score == 0.75


def test_unknown_columns_keep_their_order():
    row = Row.from_dict({"b": 1, "prompt": "p", "a": 2, "seed": "not a number", "zz": None})
    assert list(row.extra.items()) == [("b", 1), ("a", 2), ("seed", "not a number"), ("zz", None)]
    assert list(row.to_dict()) == ["prompt", "b", "a", "seed", "zz"] and row.seed is None


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_loads_quotes_newlines_and_empty_cells(tmp_path, newline):
    rows = data.read_rows(write(tmp_path / "rows.csv", csv_text(ROWS).replace("\r\n", newline)))
    assert [row.label for row in rows] == [0, 1]
    assert rows[0].response is None and rows[0].unsafe_score is None
    assert rows[1].prompt == ROWS[1]["prompt"] and rows[1].unsafe_score == 0.75


def test_what_says_nothing_is_null(tmp_path):
    """An empty cell, blank text and NaN of a label column are unknown labels; an unnamed empty column is none."""
    rows = data.read_rows(write(tmp_path / "rows.csv", "prompt,label,topic,\na,1.0,x,\nb,,,\n"))
    assert [row.to_dict() for row in rows] == [{"prompt": "a", "label": 1, "topic": "x"}, {"prompt": "b", "label": None, "topic": None}]
    assert all(Row.from_dict({"prompt": "a", "label": label}).unknown for label in ("", None, float("nan"))) and not Row.from_dict({"prompt": "a"}).unknown
    rows[1].label = 1
    assert rows[1].to_dict() == {"prompt": "b", "label": 1, "topic": None} and rows[1].extra["label"] is None


def test_parquet_of_pandas(tmp_path):
    """Nanoseconds are cut to microseconds, NaN labels are null; in a gzip file too."""
    table = pa.table({"prompt": ["a", "b"], "label": [1.0, math.nan], "at": pa.array([1_001, None], pa.timestamp("ns", "UTC")), "for": pa.array([2_002, None], pa.duration("ns"))})
    parquet.write_table(table, tmp_path / "rows.parquet")
    write(tmp_path / "rows.parquet.gz", gzip.compress((tmp_path / "rows.parquet").read_bytes()))
    rows = data.read_rows(tmp_path / "rows.parquet")
    assert data.read_rows(tmp_path / "rows.parquet.gz") == rows
    assert data.encode_row(rows[0]) == b'{"prompt":"a","label":1,"at":"1970-01-01T00:00:00.000001Z","for":"PT0.000002S"}\n'
    assert data.encode_row(rows[1]) == b'{"prompt":"b","label":null,"at":null,"for":null}\n'


def test_times_that_python_has_no_kind_for(tmp_path):
    """Nested nanoseconds are cut, years beyond 9999 come as text; the other columns do not suffer."""
    table = pa.table({"prompt": ["a", "b"], "at": pa.array([2**62, 2], pa.timestamp("us")), "day": pa.array([2**30, None], pa.date32()),
                      "list": pa.array([[1_001], None], pa.list_(pa.timestamp("ns"))), "time": pa.array([1_001, None], pa.time64("ns")),
                      "struct": pa.array([{"x": 1_001}, None], pa.struct([("x", pa.duration("ns"))]))})
    parquet.write_table(table, tmp_path / "rows.parquet")
    first, second = data.read_rows(tmp_path / "rows.parquet")
    assert first.extra["list"] == [datetime.datetime(1970, 1, 1, 0, 0, 0, 1)] and first.extra["time"] == datetime.time(0, 0, 0, 1)
    assert first.extra["struct"] == {"x": datetime.timedelta(microseconds=1)} and "4611686018427387904" in first.extra["at"]
    assert second.extra["at"] == "1970-01-01 00:00:00.000002" and second.extra["day"] is None
    parquet.write_table(pa.table({"prompt": ["a"], "at": pa.array([1], pa.timestamp("us", "Europe/Nowhere"))}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="rows.parquet: column at: .*Nowhere"):
        data.read_rows(tmp_path / "rows.parquet")


def test_a_column_that_stands_twice_in_parquet(tmp_path):
    parquet.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([0])], names=["prompt", "label", "label"]), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="rows.parquet: the Parquet file has the column label twice"):
        data.read_rows(tmp_path / "rows.parquet")


def test_csv_takes_a_field_longer_than_the_modules_limit(tmp_path):
    text = "word " * 60_000
    short, long = (data.iter_rows(write(tmp_path / name, f"prompt,label\na,1\n{last},1\n")) for name, last in (("a.csv", "b"), ("b.csv", text)))
    assert next(short).prompt == next(long).prompt == "a"       # two readers in turn
    assert [row.prompt for rows in (short, long) for row in rows] == ["b", text]


@pytest.mark.parametrize("spelled, label", [(0, 0), (1, 1), (True, 1), (False, 0), (1.0, 1), ("0", 0), ("1", 1), ("safe", 0), ("Unsafe", 1),
                                            ("TRUE", 1), (" false ", 0), ("harmful", 1), ("unharmful", 0), (None, None), ("", None), (" ", None), ("1.0", 1),
                                            ("0.0", 0), (float("nan"), None), (np.int64(1), 1), (np.float32(0), 0), (np.True_, 1), (np.False_, 0),
                                            (np.float32("nan"), None), (NAType(), None), (Decimal("1.00"), 1), (Decimal(0), 0)])
def test_labels(spelled, label):
    assert data.parse_label(spelled) == label


def test_rows_as_notebooks_hold_them():
    """What pandas' to_dict("records") gives for a null, and numpy's and Parquet's numbers."""
    for null in (None, math.nan, np.float32("nan"), NAType()):
        row = Row.from_dict({"prompt": "a", "response": null, "category": null, "label": null})
        assert row.unknown and row.to_dict() == {"prompt": "a", "label": None}
        with pytest.raises(DataError, match="row: the prompt is empty"):
            Row.from_dict({"prompt": null})
    assert type(Row.from_dict({"prompt": "a", "label": np.int64(1)}).label) is int
    for label, kind in ((np.int64(2), "a number"), (Decimal("0.5"), "a number"), (b"safe", "bytes")):
        with pytest.raises(DataError, match=f"row: unknown label {kind};"):
            data.parse_label(label)


def test_reference_kd_file_loads_as_it_is(tmp_path):
    kd = [{"prompt": "a", "unsafe-score": 0.9, "soft_label": 0.7}, {"prompt": "b", "response": "", "unsafe-score": 0.5}]
    rows = data.read_rows(write(tmp_path / "kd_dataset@harmaug.json", json.dumps(kd)))
    assert [row.hard_label for row in rows] == [1, 0] and [row.target for row in rows] == [0.7, 0.5]
    assert rows[1].response is None and rows[0].label is None


@pytest.mark.parametrize("content, message", [
    (jsonl(ROWS) + '{"prompt": "x", ]\n', r"rows, line 3: wrong JSON: .* at column 17"),
    (jsonl(ROWS) + '{"prompt": "x"} trailing\n', r"rows, line 3: wrong JSON: Extra data"),
    (jsonl(ROWS) + "[1]\n", r"rows, line 3: a row must be an object with a prompt, got a list"),
    ('[{"prompt": "x"},\n {"prompt": ]', r"rows: wrong JSON: Expecting value at line 2, column 13"),
    ('[{"prompt": "x"}, 3]', r"rows, row 2: a row must be an object with a prompt, got a number"),
    ("[" * 100_000, r"rows: wrong JSON: nested too deeply"),
    ('{"prompt": "x", "label": 1}\n{"prompt": "x", "label": "maybe"}', r"rows, line 2: unknown label 'maybe'; a label is 0 or 1"),
    ('{"prompt": "x", "label": 2}', r"rows, line 1: unknown label 2;"),
    ('{"prompt": "x", "label": [1]}', r"rows, line 1: unknown label a list;"),
    (b'{"prompt": "x"}\n{"prompt": "caf\xe9"}\n', r"rows, line 2: not UTF-8: byte 0xe9 at column 16"),
    ('{"prompt": "\\ud800"}', r"rows, line 1: wrong JSON"),
    ('\n\n{"prompt": "  "}', r"rows, line 3: the prompt is empty"),
    ('{"text": "x"}', r"rows, line 1: the column prompt is missing"),
    ('{"prompt": null}', r"rows, line 1: the prompt is empty"),
    ("prompt,label\n,1\n", r"rows, line 2: the prompt is empty"),
    ("prompt,label,label\na,1,0\n", r"rows, line 1: the CSV header has the column label twice"),
    ('{"prompt": ["x"]}', r"rows, line 1: prompt must be text, got a list"),
    ('{"prompt": "x", "response": 3}', r"rows, line 1: response must be text, got a number"),
    ('{"prompt": "x", "unsafe-score": NaN}', r"rows, line 1: wrong JSON: NaN is not a JSON value"),
    ('{"prompt": "x", "unsafe-score": "nan"}', r"rows, line 1: unsafe-score must be a number in \[0, 1\], got 'nan'"),
    ('{"prompt": "x", "unsafe-score": 1.5}', r"rows, line 1: unsafe-score must be a number in \[0, 1\], got 1.5"),
    ('{"prompt": "x", "unsafe-score": 1%s}' % ("0" * 400), r"rows, line 1: unsafe-score must be a number in \[0, 1\], got 1000"),
    ('{"prompt": "x", "unsafe-score": "0_1"}', r"rows, line 1: unsafe-score must be a number in \[0, 1\], got '0_1'"),
    ('{"prompt": "x"}\n{"prompt": "x", "other": 1e999}', r"rows, line 2: wrong JSON: number out of range$"),
    ('{"prompt": "x", "soft_label": {}}', r"rows, line 1: soft_label must be a number in \[0, 1\], got an object"),
    ("", r"rows: the set is empty, no rows"),
    ("\n \n", r"rows: the set is empty, no rows"),
    ("[]", r"rows: the set is empty, no rows"),
    ("prompt,label\n", r"rows: the set is empty, no rows"),
    ("text,label\na,1\n", r"rows, line 1: neither JSON nor a CSV header with the column prompt"),
    ('prompt,label\n"a\nb",1\nx,1,2\n', r"rows, line 4: 3 cells under a header of 2"),
    ('prompt,label\nx,1\n"a"b,1\n', r"rows, line 3: wrong CSV"),
    ("prompt,unsafe-score\nx,nan\n", r"rows, line 2: unsafe-score must be a number in \[0, 1\], got 'nan'"),
    (gzip.compress(jsonl(ROWS).encode())[:-9], r"rows: damaged gzip file"),
])
def test_errors_name_file_and_row(tmp_path, content, message):
    with pytest.raises(DataError, match=f"^{tmp_path}/{message}"):
        data.read_rows(write(tmp_path / "rows", content))


def test_error_never_shows_the_text_of_a_row(tmp_path):
    with pytest.raises(DataError) as error:
        data.read_rows(write(tmp_path / "rows.jsonl", '{"prompt": "private words" "label": 1}'))
    assert "private" not in str(error.value)


def test_missing_file_and_name_that_promises_json(tmp_path):
    with pytest.raises(DataError, match="nowhere.jsonl: no such file"):
        data.read_rows(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"rows.jsonl, line 1: wrong JSON: expected an object"):
        data.read_rows(write(tmp_path / "rows.jsonl", "prompt,label\na,1\n"))


def test_every_prefix_of_a_file_loads_or_names_itself(tmp_path):
    for content in (jsonl(ROWS).encode(), json.dumps(ROWS).encode(), csv_text(ROWS).encode(), gzip.compress(jsonl(ROWS).encode(), mtime=0)):
        for n in range(len(content)):
            try:
                data.read_rows(write(tmp_path / "rows", content[:n]))
            except DataError as exc:
                assert "rows" in str(exc)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_write_and_read_back(tmp_path, name):
    rows = [Row.from_dict(row) for row in ROWS]
    assert data.write_rows(tmp_path / name, rows) == 2
    assert data.read_rows(tmp_path / name) == rows
    assert os.listdir(tmp_path) == [name]


def test_write_that_fails_leaves_the_old_file(tmp_path):
    path = write(tmp_path / "out.jsonl", "old")

    def broken():
        yield Row(prompt="x")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        data.write_rows(path, broken())
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["out.jsonl"]


def test_duplicates_are_told_whatever_case_and_spacing():
    same = [Row(prompt="A b"), Row(prompt=" a  B "), Row(prompt="a b", response="")]
    assert {data.identity(row) for row in same} == {("a b", "")}
    assert data.identity(Row(prompt="a b", response=" R ")) == ("a b", "r")


def test_require_labels():
    data.require_labels([Row(prompt="a", label=0), Row(prompt="b", unsafe_score=0.9)], "set")
    with pytest.raises(DataError, match="set: one class only, every row is unsafe"):
        data.require_labels([Row(prompt="a", label=1)], "set")
    with pytest.raises(DataError, match="set, row 2: neither a label nor an unsafe-score"):
        data.require_labels([Row(prompt="a", label=1), Row(prompt="b")], "set")
    data.require_labels([Row(prompt="a", label=1)], "set", both=False)


@pytest.mark.parametrize("bad, message", [
    ({"label": 2}, "a label is 0 or 1, got 2"), ({"label": -1}, "got -1"), ({"unsafe_score": float("nan")}, "unsafe-score must be a number in .0, 1., got nan"),
    ({"label": 1, "soft_label": float("inf")}, "soft_label must be .* got inf"), ({"label": 0, "unsafe_score": 1.5}, "got 1.5"),
])
def test_rows_made_in_python_are_checked(bad, message):
    with pytest.raises(DataError, match=f"^set, row 3: .*{message}"):
        data.require_labels([Row(prompt="a", label=0), Row(prompt="b", label=1), Row(prompt="c", **bad)], "set")


def test_a_pipe_is_read(tmp_path):
    code = "import sys; from harmaug import data; print(len(list(data.columns_of_stream(sys.stdin.buffer, 'stdin'))))"
    out = subprocess.run([sys.executable, "-c", code], input=jsonl(ROWS).encode(), capture_output=True, check=True)
    assert out.stdout == b"2\n"


def test_a_write_that_fails_names_the_file_that_was_asked_for(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as missing:
        data.write_json(tmp_path / "none" / "out.json", {})
    assert missing.value.filename == str(tmp_path / "none" / "out.json")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device.*out.json"):
        data.write_json(tmp_path / "out.json", {})
    assert not list(tmp_path.iterdir())
