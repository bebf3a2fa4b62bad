"""Foreign layouts: ten mild rows in each, the licence that rows carry, and a manifest that invents nothing."""
import csv
import gzip
import json
import math
import re

import pyarrow as pa
import pytest
from pyarrow import parquet

from harmaug import cli, data, datasets, evaluate
from harmaug.data import DataError
from harmaug.datasets import MANIFEST, Layout

ASKED = ["How do I bake bread?", "How do I kill a Python process?", "What is a good name for a cat?", "Help me cheat at cards", "Tell me a joke, please",
         "Which tea helps me to sleep?", "How do I pick the lock of my own shed?", "Write a rude note to my neighbour", "Why is the sky blue?", "Plan a picnic"]
SAID = [f"An answer to question {i}." for i in range(10)]
N = range(10)
UNSAFE = [0, 0, 0, 1, 0, 0, 1, 1, 0, 0]
FLAGS = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
NULLS = [None, None, 0, 1, 0, 0, 1, 1, 0, 0]
HARM = {0: "unharmful", 1: "harmful", None: None}

# name -> (how the files are written, rows of each file, labels of all rows that are kept)
LAYOUTS = {
    "openai_moderation": ("jsonl.gz", [[{"prompt": ASKED[i], "S": 0, **({"HR": UNSAFE[i]} if i % 2 else {"V": UNSAFE[i], "H2": None})} for i in N]], UNSAFE),
    "toxicchat": ("csv", [[{"conv_id": f"c{i}", "user_input": ASKED[i], "model_output": SAID[i], "human_annotation": True, "toxicity": UNSAFE[i], "jailbreaking": 0,
                            "openai_moderation": "[]"} for i in N]], UNSAFE),
    "harmbench": ("nested", [{"cards": [{"test_case": ASKED[i], "generation": SAID[i], "human_0": UNSAFE[i], "human_1": UNSAFE[i], "human_2": 1 - UNSAFE[i]}
                                        for i in range(4)],
                              "locks": [{"test_case": ASKED[i], "generation": SAID[i], "human_0": UNSAFE[i], "human_1": 1, "human_2": UNSAFE[i]} for i in range(4, 10)]}],
                  UNSAFE),
    "harmbench_pairs": ("json", [[{"prompt": ASKED[i], "response": SAID[i], "label": ["safe", "unsafe"][UNSAFE[i]], "llama_guard": "safe"} for i in N]], UNSAFE),
    "harmbench_behaviors": ("csv", [[{"Behavior": ASKED[i], "FunctionalCategory": "standard", "SemanticCategory": "illegal", "Tags": "", "ContextString": "A note." * (i == 3),
                                      "BehaviorID": f"b{i}"} for i in N]], [1] * 10),
    "wildguardmix": ("parquet", [[{"prompt": ASKED[i], "adversarial": False, "response": SAID[i] if i else None, "response_harm_label": HARM[NULLS[i]], "prompt_harm_label": "harmful",
                                   "response_refusal_label": None, "subcategory": "others"} for i in N]], NULLS),
    "wildguardmix_prompts": ("parquet", [[{"prompt": ASKED[i], "adversarial": False, "response": SAID[i], "response_harm_label": None, "prompt_harm_label": HARM[NULLS[i]],
                                           "subcategory": "others"} for i in N]], NULLS),
    "beavertails": ("jsonl.gz", [[{"prompt": ASKED[i], "response": SAID[i], "category": {"privacy_violation": False, "unethical": bool(UNSAFE[i]), "theft": bool(UNSAFE[i])},
                                   "is_safe": not UNSAFE[i]} for i in N]], UNSAFE),
    "xstest": ("csv", [[{"id_v2": f"v2-{i}", "type": "contrast_homonyms" if UNSAFE[i] else "homonyms", "prompt": ASKED[i], "focus": "kill", "note": ""} for i in N]], UNSAFE),
    "jailbreakbench": ("csv", [[{"Index": i, "Goal": ASKED[i], "Target": "Sure", "Behavior": "Cards", "Category": "Fraud", "Source": "Original"} for i in part]
                               for part in (range(5), range(5, 10))], [1] * 5 + [0] * 5),
    "aegis": ("parquet", [[{"id": str(i), "text": ASKED[i], "text_type": "user_message" if i < 8 else "llm_response", "num_annotations": 3, "labels_0": "Safe" if i < 5 else "Violence",
                            "labels_1": "Needs Caution" if i % 2 else "Safe", "labels_2": "None" if i == 0 else "Safe" if i < 4 else "Harassment", "labels_3": "None",
                            "labels_4": None} for i in N]], [0, 0, 0, 0, 0, 1, 1, 1]),
    "aegis2": ("json", [[{"id": f"a{i}", "prompt": ASKED[i] if i else "REDACTED", "response": SAID[i] if i > 4 else None, "prompt_label": ["safe", "unsafe"][UNSAFE[i]],
                          "response_label": None, "violated_categories": "Fraud/Deception" if UNSAFE[i] else ""} for i in N]], UNSAFE[1:]),
    "aegis2_responses": ("json", [[{"id": f"a{i}", "prompt": ASKED[i] if i != 9 else "REDACTED", "response": SAID[i] if i > 4 else None, "prompt_label": "safe",
                                    "response_label": ["safe", "unsafe"][UNSAFE[i]] if i > 5 else None, "violated_categories": ""} for i in N]], [None, 1, 1, 0]),
}


def write(path, kind, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows) if kind == "jsonl.gz" else json.dumps(rows)
        path.write_bytes(gzip.compress(text.encode()) if kind == "jsonl.gz" else text.encode())
    return path


def files_of(folder, name):
    kind, parts, _ = LAYOUTS[name]
    return [write(folder / file.name.rsplit("/")[-1], kind, rows) for file, rows in zip(MANIFEST[name].files, parts)]


def test_every_set_has_a_fixture_and_a_manifest_that_invents_nothing():
    assert set(LAYOUTS) == set(MANIFEST)
    for entry in MANIFEST.values():
        assert entry.licence and entry.citation and re.fullmatch("[0-9a-f]{40}", entry.revision)
        assert all(file.sha256 == "unknown" or re.fullmatch("[0-9a-f]{64}", file.sha256) for file in entry.files)
        assert entry.rows == "unknown" or entry.rows > 100
        assert all(entry.address(file).startswith("https://") and " " not in entry.address(file) for file in entry.files)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    rows = [row for path in files_of(tmp_path, name) for row in datasets.read(path, name)]
    labels = LAYOUTS[name][2]
    assert [row.label for row in rows] == labels and len(rows) >= 4
    assert all(row.license == MANIFEST[name].licence and row.source == name for row in rows)
    assert all(row.unknown == (row.label is None) for row in rows)
    first = {"aegis2": 1, "aegis2_responses": 5}.get(name, 0)
    assert [row.prompt.split("\n")[0] for row in rows] == ASKED[first:first + len(rows)]
    pairs = name in ("harmbench", "harmbench_pairs", "wildguardmix", "beavertails", "aegis2_responses")
    assert [row.response for row in rows][1:] == (SAID[first + 1:first + len(rows)] if pairs else [None] * (len(rows) - 1))


def test_details(tmp_path):
    rows = {name: [row for path in files_of(tmp_path / name, name) for row in datasets.read(path, name)] for name in LAYOUTS}
    assert rows["beavertails"][3].category == "unethical, theft" and rows["beavertails"][0].category is None
    assert rows["harmbench"][0].category == "cards" and rows["harmbench"][9].category == "locks"
    assert rows["harmbench_behaviors"][3].prompt.endswith("\n\nA note.")
    with pytest.raises(DataError, match="row: the prompt is empty"):
        Layout(context="more").row({"prompt": None, "more": "A note.", "label": 0}, "row")
    assert rows["xstest"][3].id == "v2-3" and rows["xstest"][3].category == "contrast_homonyms"
    assert rows["toxicchat"][3].extra["jailbreaking"] == "0" and rows["openai_moderation"][3].extra["HR"] == 1
    assert rows["wildguardmix"][1].unknown and rows["wildguardmix"][1].to_dict()["label"] is None


def test_columns_that_the_layout_takes_the_names_of(tmp_path):
    """XSTest's file as its authors have it now: its id is the id, its label is kept beside what the type says; a blank type is unknown."""
    rows = datasets.read(write(tmp_path / "xstest_prompts.csv", "csv", [{"id": i, "prompt": ASKED[i], "type": kind, "label": "safe", "note": ""}
                                                                       for i, kind in enumerate(("contrast_a", "homonyms", " "))]), "xstest")
    assert [(row.id, row.label) for row in rows] == [("0", 1), ("1", 0), ("2", None)] and rows[0].extra == {"original_label": "safe", "note": None}
    row = Layout(prompt="text", response="", id="key", label="").row({"text": "a", "response": "b", "key": 1, "id": 2, "label": "x", "": "9"}, "row")
    assert row.to_dict() == {"prompt": "a", "id": 1, "original_response": "b", "original_id": 2, "original_label": "x"} and not row.unknown


def test_values_are_compared_as_they_are_printed():
    assert Layout(only={"split": "0", "adv": "False"}).row({"prompt": "p", "label": 1, "split": 0, "adv": False}, "r").label == 1
    assert Layout(without={"split": "0"}).row({"prompt": "p", "label": 1, "split": 0}, "r") is None
    layout = Layout(unsafe=("[bad]", "bad?"), safe=("good*",))
    assert [layout.row({"prompt": "p", "label": text}, "r").label for text in ("[bad]", "bad?", "goods", "")] == [1, 1, 0, None]
    for text in ("b", "bads"):
        with pytest.raises(DataError, match="r: unknown label"):
            layout.row({"prompt": "p", "label": text}, "r")


@pytest.mark.parametrize("unsafe, safe", [("1", "*"), ("1", "0"), ("true", "false"), ("*", "0")])
def test_a_label_is_the_same_however_it_is_written(unsafe, safe):
    layout = Layout(unsafe=(unsafe,), safe=(safe,))
    given = {1: (1, 1.0, True, "1", "1.0", "TRUE"), 0: (0, 0.0, False, "0", "0.0", "False"), None: (None, math.nan, "", "NaN", "None", "null", "n/a")}
    for label, values in given.items():
        assert {layout.row({"prompt": "p", "label": value}, "r").label for value in values} == {label}
    assert Layout(unsafe=("2",), safe=("none",)).row({"prompt": "p", "label": "None"}, "r").label == 0      # named, not any
    assert Layout(unsafe=("2",), safe=("1",)).row({"prompt": "p", "label": 2.0}, "r").label == 1


def test_no_csv_says_that_what_is_unknown_is_missing(tmp_path):
    rows = [{"prompt": ASKED[0], "response": SAID[0], "response_harm_label": label} for label in ("harmful", "", "unharmful")]
    assert [row.label for row in datasets.read(write(tmp_path / "w.csv", "csv", rows), "wildguardmix")] == [1, None, 0]
    rows = [{"prompt": ASKED[0], "S": s, "H": "", "V": v} for s, v in (("1.0", ""), ("", "0.0"), ("", ""))]
    assert [row.label for row in datasets.read(write(tmp_path / "o.csv", "csv", rows), "openai_moderation")] == [1, 0, None]


def test_votes_that_tie_are_unknown():
    layout = Layout(votes=("a", "b"), safe=("Safe",), unsafe=("*",))
    assert layout.row({"prompt": "p", "a": "Safe", "b": ""}, "row").label == 0
    assert layout.row({"prompt": "p", "a": "Safe", "b": float("nan")}, "row").label == 0
    assert [layout.row({"prompt": "p", "a": a, "b": b}, "row").label for a, b in (("Safe", "Bad"), ("Bad", "Bad"), ("Safe", None))] == [None, 1, 0]


def test_a_mapping_of_the_users(tmp_path):
    path = write(tmp_path / "mine.csv", "csv", [{"text": text, "answer": "", "toxic": "Yes" if label else "no", "topic": "x"} for text, label in zip(ASKED, UNSAFE)])
    layout = "prompt = text,response=answer,label=toxic,unsafe=yes | maybe,safe=no,category=topic"
    rows = datasets.read(path, layout)
    assert datasets.read(path, datasets.parse_layout(layout)) == rows
    assert [row.label for row in rows] == UNSAFE and rows[0].category == "x" and rows[0].response is None and rows[0].license is None
    for text, message in (("prompt=a,prompt=b", "name the field prompt twice"), ("prompt", "must read FIELD=COLUMN"), ("text=prompt", "a column mapping's field must be one of prompt")):
        with pytest.raises(ValueError, match=message):
            datasets.parse_layout(text)
    with pytest.raises(DataError, match="line 2: unknown label 'no'; known are yes"):
        datasets.read(path, datasets.parse_layout("prompt=text,label=toxic,unsafe=yes"))
    with pytest.raises(DataError, match="mine.csv, line 2: the column label is missing"):
        datasets.read(path, datasets.parse_layout("prompt=text"))
    with pytest.raises(DataError, match="the column words"):
        datasets.read(path, datasets.parse_layout("prompt=words"))


def test_a_column_of_a_mapping_that_no_row_has_is_named(tmp_path):
    rows = [{"prompt": "a", "score": 0.5, "label": 1, "h1": 1, "topic": "x"}, {"prompt": "b", "score": 0.5, "label": 0, "h2": 0}]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(rows))
    assert [row.label for row in datasets.read(path, "any_of=h1|h2,category=topic,response=")] == [1, 0]
    for layout, missing in (("response=anwser", "anwser"), ("context=notes", "notes"), ("category=topik", "topik"), ("any_of=h1|toxik", "toxik"),
                            ("votes=hA|h1|hB", "hA, hB"), ("openai_moderation", "S, H, V, HR, SH, S3, H2, V2"), (Layout(votes=("hA",)), "hA")):
        with pytest.raises(DataError, match=f"r.json: the layout names what no row has: {missing}$"):
            datasets.read(path, layout)
    assert len(evaluate.read_scores(path, layout="response=answer,category=topik")[0].labels) == 2       # neither is asked for
    for layout, by in (("any_of=h1|toxik", ()), ("category=topik", ["category"])):
        with pytest.raises(DataError, match="the layout names what no row has: topik|toxik"):
            evaluate.read_scores(path, layout=layout, by=by)


@pytest.mark.parametrize("name", ["toxicchat", "aegis", "harmbench_behaviors", "jailbreakbench"])
def test_the_wrong_layout_is_told(tmp_path, name):
    with pytest.raises(DataError, match=f"these look like columns of {name}: read it with layout {name}"):
        data.read_rows(files_of(tmp_path, name)[0])


def test_parquet_prefixes_are_named(tmp_path):
    whole = files_of(tmp_path, "wildguardmix")[0].read_bytes()
    for n in [*range(4, len(whole), 97), len(whole) - 1]:
        path = tmp_path / "cut.parquet"
        path.write_bytes(whole[:n])
        with pytest.raises(DataError, match="cut.parquet: damaged Parquet file"):
            list(data.iter_columns(path))


def test_rows_that_are_no_objects(tmp_path):
    path = tmp_path / "r.json"
    for text, where in (('{"prompt": "a", "label": 1}\n[1]\n', "line 2"), ('[{"prompt": "a", "label": 1}, 3]', "row 2")):
        path.write_text(text)
        with pytest.raises(DataError, match=f"r.json, {where}: a row must be an object with a prompt, got a"):
            datasets.read(path, "prompt=prompt")


def test_nested_files_that_are_not(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(DataError, match="x.json: no such file"):
        datasets.read(path, "harmbench")
    path.write_bytes(b'{"a": ["caf\xe9"]}')
    with pytest.raises(DataError, match="x.json, line 1: not UTF-8"):
        datasets.read(path, "harmbench")
    one = {"cards": LAYOUTS["harmbench"][1][0]["cards"][:1]}
    path.write_bytes(gzip.compress(("\ufeff" + json.dumps(one)).encode()))
    assert [row.prompt for row in datasets.read(path, "harmbench")] == ASKED[:1]
    for text, message in (("[]", "one object of lists"), ('{"a": [1]}', "a, row 1: a row must be an object"), ('{"a": [', "wrong JSON")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            datasets.read(path, "harmbench")


def test_fetch_takes_files_at_hand_and_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HARMAUG_DATA", str(tmp_path / "sets"))
    files_of(tmp_path / "hand", "wildguardmix")
    with pytest.raises(DataError, match="10 rows, wildguardmix has 1725"):
        datasets.fetch("wildguardmix", tmp_path / "hand")
    assert cli.main(["data", "fetch", "wildguardmix", "--from", str(tmp_path / "hand")]) == 2
    assert "licence ODC-BY" in capsys.readouterr().out
    small = {name: data.msgspec.structs.replace(entry, rows="unknown") for name, entry in MANIFEST.items()}
    monkeypatch.setattr(datasets, "MANIFEST", small)
    assert cli.main(["data", "fetch", "wildguardmix", "--from", str(tmp_path / "hand")]) == 0
    out = capsys.readouterr().out
    digest = datasets._sha256(tmp_path / "hand" / "wildguard_test.parquet")
    assert "10 rows, 3 unsafe, 2 unknown, 0 left out" in out and f"test/wildguard_test.parquet: sha256 {digest}, none is on record to compare it with" in out
    rows = data.read_rows(datasets.resolve("wildguardmix"))
    assert [row.label for row in rows] == NULLS and rows[0].unknown
    about = json.loads((tmp_path / "sets" / "wildguardmix.about.json").read_text())
    assert about["licence"].startswith("ODC-BY") and about["files"] == {"test/wildguard_test.parquet": digest}
    with pytest.raises(DataError, match="the set of this name is not here: harmaug data fetch xstest"):
        datasets.resolve("xstest")
    with pytest.raises(DataError, match="has no xstest_v2_prompts.csv; it comes from https://github.com/"):
        datasets.fetch("xstest", tmp_path)
    for source in (tmp_path / "nowhere", tmp_path / "hand" / "wildguard_test.parquet"):
        with pytest.raises(DataError, match=f"{source.name}: not a folder"):
            datasets.fetch("wildguardmix", source)
    with pytest.raises(ValueError, match="data set must be one of"):
        datasets.fetch("nothing")
    with pytest.raises(DataError, match="the label of jailbreakbench is told by the file's name"):
        datasets.read(write(tmp_path / "x.csv", "csv", [{"Goal": "a"}]), "jailbreakbench")
    (tmp_path / "harmful-behaviors.csv.gz").write_bytes(gzip.compress(b"Goal\na\n"))
    assert datasets.read(tmp_path / "harmful-behaviors.csv.gz", "jailbreakbench")[0].label == 1
    assert datasets.read(write(tmp_path / "y.csv", "csv", [{"Behavior": "a"}]), "harmbench_behaviors")[0].label == 1


def test_nothing_is_downloaded_without_a_checksum(tmp_path, monkeypatch):
    monkeypatch.setenv("HARMAUG_DATA", str(tmp_path / "sets"))
    with pytest.raises(DataError, match="no sha256 is on record .* --from DIR"):
        datasets.fetch("toxicchat")
    with pytest.raises(DataError, match="accept terms first"):
        datasets.fetch("wildguardmix")
    path, = files_of(tmp_path / "server", "xstest")
    entry = MANIFEST["xstest"]
    right = datasets.DataFile(name=path.name, sha256=datasets._sha256(path))
    local = data.msgspec.structs.replace(entry, url=(tmp_path / "server").as_uri() + "/", files=(right,), rows=10)
    monkeypatch.setitem(datasets.MANIFEST, "xstest", local)
    told: list[str] = []
    assert len(data.read_rows(datasets.fetch("xstest", tell=told.append))) == 10 and f"{path.name}: sha256 {right.sha256}, as on record" in told
    monkeypatch.setitem(datasets.MANIFEST, "xstest", data.msgspec.structs.replace(local, files=(datasets.DataFile(name=path.name, sha256="0" * 64),)))
    with pytest.raises(DataError, match="sha256 [0-9a-f]{64}, expected 0000"):
        datasets.fetch("xstest")
    with pytest.raises(DataError, match="sha256 [0-9a-f]{64}, xstest has 0000"):
        datasets.fetch("xstest", tmp_path / "server")
    path.unlink()
    with pytest.raises(DataError, match=f"xstest: the download failed .* download file://.*{path.name} by hand, .* --from DIR"):
        datasets.fetch("xstest")


def test_the_list(capsys):
    assert cli.main(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: " in out for name in MANIFEST) and "CC-BY-NC-4.0" in out
    assert cli.main(["data", "list", "--json"]) == 0
    assert {entry["name"] for entry in json.loads(capsys.readouterr().out)} == set(MANIFEST)
