"""What reports and notebooks show: tables as they are, row text escaped and behind a click."""
from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from test_guard import write

from harmaug import evaluate, report, runs, teacher, thresholds
from harmaug.data import Row, write_rows
from harmaug.guard import Guard
from harmaug.plots import Chart, Series
from harmaug.report import HiddenRows, Section, Table, write_report

HOSTILE = "</details><script>alert(1)</script>\u202e"
SHOWN = HOSTILE.replace("\u202e", "[U+202E]")     # else it would turn what stands around it


class Page(HTMLParser):
    """Text outside of and inside of <details>, and the tags met."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.depth, self.seen, self.hidden, self.tags = 0, "", "", []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.depth += tag == "details"

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "details"

    def handle_data(self, data: str) -> None:
        if self.depth:
            self.hidden += data
        else:
            self.seen += data


def test_a_table_of_text_sends_nothing_to_the_terminal():
    shown = repr(report.Table([["set", "AUPRC"], ["a\x1b[31m\nharmaug: all gates passed\u202e", 0.5]], ["note\x07"]))
    assert shown.splitlines()[1].startswith(r"a\x1b[31m\nharmaug: all gates passed\u202e") and shown.endswith("note\\x07")


def test_a_table_is_text_and_html() -> None:
    table = Table([["set", "AUPRC", "interval"], ["a <b>", 0.81234, (0.7, 0.9)], ["longer", None, "x"]], ["one note"])
    assert repr(table).splitlines() == ["set     AUPRC        interval", "a <b>   0.812  0.700 .. 0.900", "longer      -               x", "one note"]
    page = Page(table._repr_html_())
    assert page.tags == ["div", "table", *(["tr"] + ["th"] * 3), *(["tr"] + ["td"] * 3) * 2, "p"]
    assert "a <b>" in page.seen and "0.812" in page.seen


def test_hidden_rows_tell_no_text_but_on_a_click() -> None:
    rows = HiddenRows([Row(prompt=f"{HOSTILE} {i}", response=HOSTILE, label=1, unsafe_score=0.5) for i in range(10)], limit=4)
    assert repr(rows) == str(rows) == "<4 rows, text hidden>"
    page = Page(rows._repr_html_())
    assert "script" not in page.tags
    assert SHOWN not in page.seen and page.hidden.count(SHOWN) == 8
    assert repr(HiddenRows([])) == "<0 rows, text hidden>"
    assert "No rows" in HiddenRows([])._repr_html_()


def test_the_page_hides_rows_and_escapes_everything(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    chart = Chart(title=HOSTILE, x_label=HOSTILE, series=[Series(name=HOSTILE, x=np.arange(2), y=np.arange(2))], marks={HOSTILE: 0.5})
    section = Section(heading=HOSTILE, notes=[HOSTILE], charts=[chart, Chart(title="b", bars=[(HOSTILE, 3)])], tables=[[["a", HOSTILE], [HOSTILE, 1.0]]], files=[(HOSTILE, HOSTILE)],
                      rows=[{"prompt": "row " + HOSTILE}])
    write_report(path, HOSTILE, [section], notes=[HOSTILE], rows=[{"prompt": "row " + HOSTILE}], info={"k": HOSTILE})
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "row " + SHOWN not in page.seen and "row " + SHOWN in page.hidden and "\u202e" not in text
    assert not re.findall(r"<(?:td|th|li|p|h1)>", text) and "overflow-wrap: anywhere }\n" in text and ".wide td:first-child { overflow-wrap: anywhere" in text     # each in its own direction; no name widens the page
    assert not re.search(r"(?:src|href)\s*=", text)     # self-contained
    assert path.stat().st_mode & 0o077 == 0


def test_empty_tables_and_numpys_numbers(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, "t", [Section(heading="a", tables=[[]], folded=[[]])], info={"n": np.float32(0.5), "k": np.arange(2)})
    assert "0.5" in path.read_text() and "<details><summary dir=auto>" not in path.read_text()
    with pytest.raises(TypeError, match="object is no JSON"):
        write_report(path, "t", [], info={"n": object()})


def test_only_rows_with_a_generator_are_said_to_be_invented() -> None:
    people = Row(prompt="a", label=0)
    assert "invented" not in HiddenRows([people])._repr_html_() and "Many of these rows are harmful" in HiddenRows([people])._repr_html_()
    assert "invented" in HiddenRows([people, Row(prompt="b", generator="smollm2")])._repr_html_()


def test_thresholds_are_told_in_the_digits_that_they_need(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    for shift, dtype in ((9, np.float32), (-9, np.float32), (0, np.float64), (14, np.float64)):
        s = (1 / (1 + np.exp(-(rng.normal(shift, 1, 400) + 1.2 * y)))).astype(dtype)
        for threshold in thresholds.fit_threshold(y, s, draws=0).threshold, float(np.sort(s)[150]):
            text = report.shortest(threshold, s)
            assert all(np.array_equal(s >= kind(text), s >= kind(threshold)) for kind in (dtype, np.float64))
            assert np.float32(report.shortest(threshold)) == np.float32(threshold)
        part = evaluate.ScoredSet(name="mine", labels=y, scores=s)
        write_rows(tmp_path / "scores.jsonl", part.lines())
        section, = report._sets(tmp_path, {})
        lines = section.tables[0]
        assert all(evaluate.metrics(y, s, float(line[1]))["f1"] == line[6] for line in lines[1:]) and lines[1][1] + "," in section.files[0][1]
    assert report.shortest(-1e300, np.array([-2e300, 0, 1e300])) == "-1e+300" == report.shortest(-1e300)
    found = report.measures_table(evaluate.summarise([part], threshold=0.5, fitted=1 - 2 ** -20, draws=0))
    assert found.lines[2][0] == "mine, at 0.999999046 (fitted)" and ">= 0.5;" in found.notes[0]


@pytest.mark.parametrize("protocol", evaluate.PROTOCOLS)
def test_thresholds_flag_what_the_run_flags(tmp_path: Path, protocol: str) -> None:
    y, s = np.array([1, 1, 0, 0, 1, 0] * 20), np.array([0.7, 0.9, 0.7, 0.1, 0.7, 0.2] * 20, np.float32)
    part = evaluate.ScoredSet(name="mine", labels=y, scores=s)
    write_rows(tmp_path / "scores.jsonl", part.lines())
    metrics = evaluate.summarise([part], threshold=0.7, draws=0, protocol=protocol)
    section, = report._sets(tmp_path, metrics)
    shown = {one.name: one.y[70] for one in next(chart for chart in section.charts if chart.title == "Thresholds").series}
    assert [shown[name] for name in ("recall", "precision", "F1", "FPR")] == [metrics["datasets"]["mine"][name.lower()] for name in shown]
    for line in section.tables[0][1:]:
        assert evaluate.metrics(y, s, float(line[1]), protocol=protocol)["f1"] == line[6]
    assert report.shortest(float(np.float32(0.7)), s.astype(np.float64), "harmaug-2024") == "0.7"


def test_labels_in_doubt_are_those_that_the_audit_counts(tmp_path: Path) -> None:
    rows = [Row(prompt=f"{label} {score}", label=label, unsafe_score=score) for label in (0, 1) for score in (0.25, 0.5, 0.75)]
    write_rows(tmp_path / "labelled.jsonl", rows)
    section, = report._label_noise(tmp_path)
    found = teacher.audit(rows)
    assert f"contradicts {len(found['disagreements'])} of 6" in section.notes[0]
    assert [row["prompt"] for row in section.rows] == [rows[item["row"] - 1].prompt for item in found["disagreements"]]


def test_guards_scores_and_runs_show_themselves_without_text(tmp_path: Path) -> None:
    guard = Guard.from_pretrained(write(tmp_path / "<b>guard"))
    page = Page(guard._repr_html_())
    assert "<b>guard" in page.seen and "b" not in page.tags and "2 layers of 33" in page.seen and "0.5 on (not fitted)" in page.seen
    guard.set_threshold(0.25, temperature=2, target="fpr=0.05")
    assert "0.25 on (fitted for fpr=0.05)" in guard._repr_html_() and "float32" in guard._repr_html_()
    details = guard.score_details(["a b c"] * 20 + ["secret " * 40])
    page = Page(details._repr_html_())
    assert page.tags.count("tr") == 21 and f"{details.score[0]:.3f}" in page.seen and "the first 20 of 21 rows" in page.seen and "secret" not in page.seen
    assert "the first" not in guard.score_details(["a"])._repr_html_()
    with runs.RunFolder(tmp_path / "run") as run:
        assert repr(run) == f"<run folder {tmp_path / 'run'}: no stage yet>" and Page(run._repr_html_()).tags.count("tr") == 1
        run.stage("label", config={}).account({"done": 5}, done=True)
        run.stage("distil", config={}).account({"done": 2})
        page = Page(run._repr_html_())
        assert "label, distil (not finished)" in page.seen and page.tags.count("tr") == 3


def test_bars_are_seen_where_somebody_looks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Half:
        def score(self, prompts: list[str], responses: list[str | None] | None = None) -> np.ndarray:
            return np.full(len(prompts), 0.5)

    rows = [Row(prompt=f"row {i}", label=i % 2) for i in range(2500)]
    evaluate.evaluate_guard(Half(), {"mine": rows}, draws=0)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(runs, "shows_bars", lambda: True)
    evaluate.evaluate_guard(Half(), {"mine": rows}, draws=0)
    said = capsys.readouterr().err
    assert "score mine" in said and "2500/2500" in said and "row 1" not in said
