"""Charts against the figures that they draw, as SVG and as matplotlib figures; the report of a run whole."""
import csv
import inspect
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn import metrics as sk

from harmaug import data, evaluate, plots
from harmaug.data import Row
from harmaug.plots import Chart, Series
from harmaug.report import Table, measures_table, report_run
from harmaug.runs import RunFolder


def sample(n=300, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(np.int8)
    return y, np.clip(0.3 * y + 0.7 * rng.random(n), 0, 1)


def test_curves_are_those_of_scikit_learn():
    y, s = sample()
    chart = plots.pr_curve.chart(y, s, draws=40)
    line = chart.series[0]
    for labels, scores in ((y, s), *((np.repeat([1, 0], n), np.random.default_rng(n).random(2 * n)) for n in (50, 100))):     # recalls of k / 100
        precision, recall, _ = sk.precision_recall_curve(labels, scores)
        found = plots.pr_curve.chart(labels, scores, draws=0).series[0]
        assert all(p == max(precision[:-1][recall[:-1] >= r - 1e-12]) for r, p in zip(found.x, found.y))
    assert (line.low <= line.high).all() and np.mean((line.low <= line.y) & (line.y <= line.high)) > 0.9
    line = plots.roc_curve.chart(y, s, draws=0).series[0]
    fpr, tpr, _ = sk.roc_curve(y, s, drop_intermediate=False)
    assert all(t == max(tpr[fpr <= x + 1e-12]) for x, t in zip(line.x, line.y)) and line.low is None
    with pytest.raises(ValueError, match="needs both classes: all 2 rows are unsafe"):
        plots.pr_curve.chart([1, 1], [0.1, 0.2])


def test_other_charts():
    y, s = sample()
    safe, unsafe = plots.distribution.chart(y, s).series
    assert safe.y[::2].sum() == pytest.approx(1) and unsafe.name == f"unsafe ({y.sum()} rows)"
    lines = {one.name: one for one in plots.threshold_curves.chart(y, s, marks={"in use": 0.5}).series}
    at = evaluate.metrics(y, s, 0.5)
    assert [lines[name].y[50] for name in ("recall", "precision", "F1", "FPR")] == [at[name] for name in ("recall", "precision", "f1", "fpr")]
    s = s.round(2)
    lines = {one.name: one for one in plots.threshold_curves.chart(y, s).series}
    for i in range(101):        # a score is flagged at its own threshold
        at = evaluate.metrics(y, s, i / 100)
        assert [lines[name].y[i] for name in ("recall", "FPR")] == [at["recall"], at["fpr"]]
    bins = plots.calibration.chart(y, s).series[0]
    assert (bins.low <= bins.y + 1e-12).all() and (bins.y <= bins.high + 1e-12).all() and len(bins.x) <= 15
    assert plots.distribution.chart([1, 1], [0.5, 0.5]).top == 1


@pytest.mark.parametrize("name, data, says", [
    ("distribution", ([0, 1], [2.0, 3.0]), r"row 0: score 2 is not in \[0, 1\]"), ("calibration", ([0, 1], [0.5, -1.0]), "row 1: score -1"),
    ("threshold_curves", ([0, 1], [0.5, 1.5]), "row 1: score 1.5"), ("funnel", ({},), "no counts"),
    ("diversity_map", ([], [], []), r"at least 1; their shapes are \(0,\)"), ("diversity_map", ([1, 2], [1], [0, 0]), r"of one length.* \(2,\), \(1,\), \(2,\)"),
    ("diversity_map", ([1, np.nan], [1, 2], [0, 0]), "not finite"),
    ("diversity_map", ([1, 2], [1, 2], np.array([0, np.nan])), "a cluster is not a whole number"),
    *(("funnel", ({"kept": value},), "Yield: kept must be a finite number >= 0, got ") for value in (np.nan, np.inf, None, -1)),
])
def test_what_cannot_be_drawn_is_said(name, data, says):
    with pytest.raises(ValueError, match=says):
        getattr(plots, name).chart(*data)


@pytest.mark.parametrize("place", [np.nan, None])
def test_a_mark_is_a_number(place):
    with pytest.raises(ValueError, match="Thresholds: in use must be a finite number, got "):
        plots.threshold_curves.chart([0, 1], [0.1, 0.9], marks={"in use": place})


@pytest.mark.parametrize("label, missing", [(0, {"recall", "F1"}), (1, {"FPR"})])
def test_what_does_not_exist_is_not_drawn(label, missing):
    assert {one.name for one in plots.threshold_curves.chart([label] * 3, [0.1, 0.5, 0.9]).series} == {"recall", "precision", "F1", "FPR"} - missing


def test_a_threshold_is_compared_in_the_dtype_of_the_scores():
    assert plots.threshold_curves.chart([1, 0], np.float32([0.7, 0.1])).series[0].y[70] == 1


def test_a_tie_is_flagged_as_the_protocol_says():
    chart = plots.threshold_curves.chart([1, 0], np.float32([0.7, 0.1]), protocol="harmaug-2024")
    at = [evaluate.metrics([1, 0], np.float32([0.7, 0.1]), cut / 100, protocol="harmaug-2024") for cut in range(101)]
    for one in chart.series:
        assert one.y.tolist() == [found[one.name.lower()] for found in at]
    assert {one.name for one in plots.threshold_curves.chart([0], [0.5], protocol="harmaug-2024").series} == {"recall", "precision", "F1", "FPR"}


def test_bars_and_maps_of_unusual_input(tmp_path):
    shown = plots.funnel.chart({"share": 0.25, "$\\frac$": 1234.0}, "cost $\\x$")
    assert [bar["value"] for bar in shown.shapes()["bars"]] == ["0.25", "1,234"]
    shown.figure().savefig(tmp_path / "x.png")      # a dollar begins no formula
    groups = np.zeros(101, np.int64)
    groups[1] = 10 ** 12
    lines = plots.diversity_map.chart(np.arange(101), np.arange(101), groups, most=50)
    assert "h34" not in lines._repr_html_() and [one.name for one in lines.series] == ["cluster 1 (100 texts)", "cluster 2 (1 texts)"]
    assert "nan" not in plots.diversity_map.chart([0, 1e308], [-1e308, 1e308], [0, 1])._repr_html_()


def test_a_line_breaks_where_nothing_is_known(recwarn):
    y = np.array([0.1, np.nan, 0.3, 0.4, np.nan])
    one = Series(name="a", x=np.arange(5) / 4, y=y, low=y - 0.1, high=y + 0.1, dots=True)
    svg = Chart(title="t", series=[one])._repr_html_()
    assert "nan" not in svg and svg.count("<polyline") == svg.count("<polygon") == 2 and svg.count("<circle") == 3 and not recwarn
    for top in (0, np.nan, -1, np.inf):
        with pytest.raises(ValueError, match="t: top must be a finite number above 0, got"):
            Chart(title="t", top=top)


@pytest.mark.parametrize("name", ["contradicts the label", "contradicts the label that it was given " * 3, "W" * 60, "\u6f22" * 40])
def test_long_names_of_bars_are_seen(name):
    chart = plots.funnel.chart({name: 12345678, "kept": 3})
    shown = chart.shapes()
    first, left = shown["bars"][0], shown["left"]
    assert len(first["name"]) * (7 if name.isascii() else 11) + 6 <= left <= 210 and left + first["width"] + 76 <= 420 and first["width"] > 100
    assert (first["name"] == name) == (len(name) < 40) and first["name"].rstrip("…") in name and f"{name} 12,345,678" in shown["says"]
    figure = (chart if name.isascii() else plots.funnel.chart({"W" * 50: 1})).figure()      # matplotlib has no such glyphs
    figure.draw_without_rendering()
    assert figure.axes[0].get_yticklabels()[0].get_window_extent().x0 >= 0 and figure.axes[0].get_position().width > 0.3


def test_a_chart_is_told_and_stands_on_white():
    y, s = sample()
    for plot, says in ((plots.pr_curve, f"AUPRC {sk.average_precision_score(y, s):.3f}"), (plots.roc_curve, f"AUROC {sk.roc_auc_score(y, s):.3f}"),
                       (plots.calibration, f"ECE {evaluate.metrics(y, s)['ece']:.3f}"), (plots.distribution, f"unsafe ({y.sum()} rows)")):
        shown = plot.chart(y, s)._repr_html_()
        assert f"{plot.chart(y, s).title}, " in shown and says in re.findall('aria-label="([^"]*)"', shown)[0]
    assert "background: #fff; color: #222" in shown
    assert "in use 0.25" in plots.threshold_curves.chart(y, s, marks={"in use": 0.25}).shapes()["says"]


def test_a_plot_tells_its_parameters():
    assert str(inspect.signature(plots.pr_curve)).endswith("draws: 'int' = 200, seed: 'int' = 0) -> 'matplotlib.figure.Figure'")
    assert "labels : array-like" in plots.pr_curve.__doc__
    assert all("Returns\n" in found.__doc__ and "Raises\n" in found.__doc__ for found in vars(plots).values() if isinstance(found, plots.Plot))


@pytest.mark.parametrize("name, data", [("pr_curve", sample()), ("roc_curve", sample()), ("distribution", sample()), ("calibration", sample()),
                                        ("threshold_curves", sample()),
                                        ("diversity_map", (np.linspace(-1, 2, 60), np.linspace(3, 2, 60), np.repeat(np.arange(-1, 11), 5), (0.3, 0.2))), ("funnel", ({"asked": 5, "kept": 3},))])
def test_every_plot_is_a_figure_and_svg(name, data, tmp_path):
    plot = getattr(plots, name)
    figure = plot(*data)
    figure.savefig(tmp_path / "x.png")
    assert type(figure).__name__ == "Figure" and len(figure.axes) == 1 and (tmp_path / "x.png").stat().st_size > 1000
    svg = plot.chart(*data)._repr_html_()
    root = ElementTree.fromstring(re.sub(r"([\w-]+)=([^\s\"'>/]+)", r'\1="\2"', svg))
    root = root[0]      # of a div that bounds its width
    assert root.tag == "svg" and root.get("aria-label")
    dashes = [line.get("stroke-dasharray") for line in root.iter("path") if line.get("stroke-width")]
    assert len(set(dashes)) == len(dashes)      # told apart without colour
    assert "nan" not in svg


def test_the_page_of_a_run(tmp_path):
    run = tmp_path / "run"
    with RunFolder(run):
        pass
    y, s = sample()
    groups = {"category": ["a", "b", "c"] * 100, "source": [f"s{i % 60}" for i in range(300)], "id": ["x" * (81 + i % 2) for i in range(300)]}
    part = evaluate.ScoredSet(name="mine", labels=y, scores=s, groups=groups,
                              cohort={"file": None, "sha256": None, "n_unlabelled": 0})
    safe = evaluate.ScoredSet(name="safe", labels=np.zeros(3, np.int8), scores=np.array([0.1, 0.2, 0.9]), cohort=part.cohort)
    report = evaluate.summarise([part, safe], draws=20, fitted=0.4)
    data.write_json(run / "metrics.json", report)
    data.write_rows(run / "scores.jsonl", (line for p in (part, safe) for line in p.lines()))
    data.write_rows(run / "labelled.jsonl", [Row(prompt=f"secret {i}", label=i % 2, unsafe_score=0.25) for i in range(10)])
    info = json.loads((run / "run.json").read_text())
    info["stages"] = {"augment": {"seconds": 5.0, "account": {"asked": 20, "contradicts": 8, "refusal": 7, "compliance": 5, "kept": 12, "done": 20, "tokens": 300}}}
    data.write_json(run / "run.json", info)
    page = report_run(run).read_text()
    outside = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    assert "by category" in outside and ">s59<" not in outside and ">xxx" not in outside and page.count(">s59<") == 1
    assert "secret" not in outside and page.count("secret") >= 5 and not re.search(r"(?:src|href)\s*=|https?://", outside)
    assert page.count("<svg") == 5 + 3 + 1 and "contradicts 5 of 10 labels" in page and "416.667" in page and "by category" in page
    assert 'aria-label="mine: scores, thresholds, slices: ROC, AUROC 0.' in page and page.count("<th scope=col") == page.count("<th") > 20
    assert "over-refusal: safe" in page and ">all 3 rows are safe</li>" in page and "\\begin{tabular}" in page and "mine,300," in page
    assert "No stage has run yet" not in page and ">refusal<" not in page.split("asked, dropped, kept")[1].split("</svg>")[0]
    # a killed run leaves a torn line; a damaged one is named
    whole = (run / "labelled.jsonl").read_text()
    (run / "labelled.jsonl").write_text(whole + '{"prompt": "torn')
    assert "contradicts 5 of 10 labels" in report_run(run).read_text()
    (run / "labelled.jsonl").write_text(whole + '{"prompt": "torn\n')
    with pytest.raises(data.DataError, match="labelled.jsonl, line 11"):
        report_run(run)
    (run / "labelled.jsonl").write_text(whole)
    for broken in ('{"datasets": 3}', '{"notes": 5}', '{"datasets": {"a": {}}}'):
        (run / "metrics.json").write_text(broken)
        with pytest.raises(ValueError, match="is damaged"):
            report_run(run)


def test_tables_as_csv_and_latex():
    table = Table([["set", "F1 & more"], ["a_b", 0.123456789], ["c,d", None], ["e", (0.1, 0.25)]])
    assert table.to_csv() == 'set,F1 & more\na_b,0.123456789\n"c,d",\ne,0.100 .. 0.250\n'
    assert table.to_latex().splitlines() == ["% needs \\usepackage{booktabs}", "\\begin{tabular}{lr}", "\\toprule", "set & F1 \\& more \\\\", "\\midrule", "a\\_b & 0.123 \\\\", "c,d & - \\\\",
                                             "e & 0.100 .. 0.250 \\\\", "\\bottomrule", "\\end{tabular}"]
    assert Table([["set"], ["[dev] set"], [" * a\n\nb"]]).to_latex().splitlines()[5:7] == ["{}[dev] set \\\\", "{}* a b \\\\"]
    assert Table([["a\x00\x1b <b> | \"c\""]]).to_latex().splitlines()[3] == "a \\textless{}b\\textgreater{} \\textbar{} ''c'' \\\\"
    assert Table([]).to_latex().splitlines()[1:] == ["\\begin{tabular}{l}", "\\end{tabular}"] and Table([]).to_csv() == repr(Table([])) == ""
    cells = ["=1+1", "+a", "-a", "@a", "\ta", "-", "-0.5", "+1e5", -0.5, None, "a=b", (-1.0, 2.0)]
    assert next(csv.reader([Table([cells]).to_csv()])) == ["'=1+1", "'+a", "'-a", "'@a", "'\ta", "-", "-0.5", "+1e5", "-0.5", "", "a=b", "-1.000 .. 2.000"]
    table = Table([["a", np.float32(0.123456), np.float64(0.7654321)]])
    assert repr(table) == "a  0.123  0.765" and table.to_csv() == "a,0.123456,0.7654321\n"
    y, s = sample()
    report = evaluate.summarise([evaluate.ScoredSet(name="a", labels=y, scores=s)], draws=0)
    assert measures_table(report).lines[1][0] == "a"
