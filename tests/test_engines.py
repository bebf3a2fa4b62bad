"""harmaug.engines: order, early results, what is refused; and the pickles that Ray's workers open models from. With Ray: tests/reference/test_ray.py."""
import pickle
import sys

import numpy as np
import pytest
from test_pipeline import write_bert, write_llama

import harmaug
from harmaug import cli, engines, pipeline, runs, teacher
from harmaug.chat import ChatTemplate
from harmaug.endpoint import EndpointConfig, EndpointLM


def test_map_rows_keeps_order_and_streams():
    seen = []

    def rows():
        for i in range(10):
            seen.append(i)
            yield i

    mapped = engines.map_rows(lambda batch: (x * x for x in batch), rows(), batch_size=4)
    assert next(mapped) == (0, 0) and seen == [0, 1, 2, 3]
    assert list(mapped) == [(i, i * i) for i in range(1, 10)]
    with pytest.raises(RuntimeError, match="gave 1 results for 2 rows"):
        list(engines.map_rows(lambda batch: [1], [1, 2]))
    with pytest.raises(RuntimeError, match="gave more than 2 results for 2 rows"):
        list(engines.map_rows(lambda batch: [1, 2, 3], [1, 2]))


@pytest.mark.parametrize("engine", ["spark", "ray:", "ray:0", "ray:x", "local:2"])
def test_unknown_engines_are_named(engine):
    with pytest.raises(ValueError, match="engine must be"):
        list(engines.map_rows(list, [1], engine=engine))


def test_without_ray_one_line_names_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    assert cli.main(["score", "--model", "standin", "--engine", "ray:2", str(tmp_path / "rows.jsonl")]) == 2
    assert capsys.readouterr().err == "harmaug: engine 'ray' needs ray: pip install 'harmaug[ray]'\n"


@pytest.mark.parametrize(("engine", "trains", "rows_on"), [(None, "native", "local"), ("torch", "torch", "local"), ("ray:2", "native", "ray:2"),
                                                           ("local", "native", "local")])
def test_one_option_for_rows_and_for_training(engine, trains, rows_on, monkeypatch, tmp_path):
    """--engine of `run`: a name that trains goes to [distil], the others to [generator] and [label]."""
    (tmp_path / "seed.jsonl").write_text('{"prompt": "a b c", "label": 0}\n{"prompt": "d e f", "label": 1}\n')
    seen = {}
    monkeypatch.setattr(pipeline, "label", lambda *_, **options: seen.update(rows_on=options["engine"]) or {})
    monkeypatch.setattr(pipeline, "distil", lambda *_, **options: seen.update(trains=options["config"].engine) or {})
    monkeypatch.setattr(pipeline, "describe", lambda *_: "")
    tables = {"data": {"seed": ["seed.jsonl"]}, "label": {}, "distil": {"student": str(write_bert(tmp_path / "bert"))}}
    with runs.RunFolder(tmp_path / "run") as run:
        pipeline.run_config(run, tables, data_folder=tmp_path, engine=engine, quiet=True)
        assert seen == {"trains": trains, "rows_on": rows_on}
        with pytest.raises(ValueError, match="engine must be one of local, ray, got 'spark'"):
            pipeline.run_config(run, tables, data_folder=tmp_path, engine="spark", quiet=True)


def test_pickles_hold_no_weights_and_open_the_same(tmp_path):
    lm = harmaug.CausalLM.from_pretrained(write_llama(tmp_path / "tiny.gguf"), dtype="bfloat16")
    lm.licence, lm.template = "mine", ChatTemplate(source="{{ messages[0].content }}")
    pickled = pickle.dumps(lm)
    other = pickle.loads(pickled)
    assert len(pickled) < 2000 and other.generate("a list", n=3, seed=5) == lm.generate("a list", n=3, seed=5)
    assert (other.name, other.licence, other.dtype, other.template) == (lm.name, "mine", "bfloat16", lm.template)
    guard = harmaug.Guard.from_pretrained(write_bert(tmp_path / "bert"), dtype="int8", max_length=40, long="truncate")
    guard.set_threshold(0.25, temperature=2.0)
    pickled = pickle.dumps(teacher.GuardTeacher(guard, "g", "MIT"))
    other = pickle.loads(pickled)
    rows = ["a row", "another row " * 40]
    assert len(pickled) < 2000 and np.array_equal(other.score(rows), guard.score(rows)) and (other.name, other.licence) == ("g", "MIT")
    assert (other.guard.threshold, other.guard.temperature, other.guard.long) == (0.25, 2.0, "truncate")
    with pytest.raises(ValueError, match="a server is asked from one process"):
        pickle.dumps(EndpointLM(EndpointConfig(url="http://x", model="m"), lm.template))
