"""The examples that are programs run, those that are configurations are read."""
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tiny_bert

from harmaug import pipeline, sweep

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reward_model(tmp_path, capsys):
    module = load("reward_model")
    folder = str(tiny_bert.write(tmp_path / "guard"))
    reward = module.guard_reward(folder)
    # as TRL calls it: keywords, columns of the data set besides, conversations or texts
    values = reward(prompts=["w1 w2", "w3"], completions=["w4", "w5 w6"], completion_ids=[[1], [2]], trainer_state=None)
    assert isinstance(values, list) and all(type(value) is float and 0 <= value <= 1 for value in values) and reward.__name__
    spoken = reward([[{"role": "user", "content": "w1 w2"}], [{"role": "user", "content": "w3"}]], [[{"role": "assistant", "content": "w4"}], [{"role": "assistant", "content": "w5 w6"}]])
    assert spoken == values
    from harmaug.guard import Guard
    guard = Guard.from_pretrained(folder)
    np.testing.assert_allclose(values, 1 - guard.score(["w1 w2", "w3"], ["w4", "w5 w6"]), rtol=1e-6)
    assert module.guard_reward(guard, red_team=True)(["x", "y"], ["w4", "w5"]) == guard.score(["w4", "w5"]).tolist()
    with pytest.raises(ValueError, match="must be as many, got 1 and 2"):
        reward(["w1"], ["w2", "w3"])
    (tmp_path / "rows.jsonl").write_text('{"prompt": "w1", "completion": "w2"}\n')
    assert module.main([str(tmp_path / "rows.jsonl"), "--guard", folder]) == 0
    assert 0 <= float(capsys.readouterr().out) <= 1
    assert module.main(["--guard", folder, "--red-team"]) == 0 and len(capsys.readouterr().out.split()) == 3


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_configurations(path):
    tables = pipeline.read_config(path)
    if "sweep" in tables:
        assert sweep.plan_of(tables, path.name)[1]
    else:
        pipeline.Config.from_dict(tables, path.name)
