"""examples/gfn_attacker.py: its probabilities are the native decoder's, and a run that was cut short goes on."""
import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harmaug.generator import CausalLM

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "gfn_attacker.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("gfn_attacker", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module      # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.filterwarnings("ignore")       # of peft and transformers among themselves
def test_probabilities_are_the_models_without_the_banned_tokens(example):
    attacker = example.Attacker("smollm2", n_tokens=8, min_tokens=3, rank=4, seed=0)
    native = CausalLM.from_pretrained("smollm2", dtype="float32")
    sampled = attacker.sample(3, 1.5)
    reference = attacker.reference(sampled)
    with torch.no_grad():
        assert torch.equal(attacker.log_probs(sampled), reference)     # an adapter that learnt nothing yet
    for row, n, found in zip(sampled.ids, sampled.lengths, reference, strict=True):
        ids = row[:n].tolist()
        beginning = attacker.beginning[0].tolist()
        logits = native.logits(beginning + ids)[len(beginning) - 1:-1].astype(np.float64)
        logits[:, attacker.banned.numpy()] = -np.inf
        logits[:3, attacker.end] = -np.inf
        logits -= np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) + logits.max(-1, keepdims=True)
        assert float(found) == pytest.approx(logits[np.arange(n), ids].sum(), abs=2e-3)
        assert b"\n" not in b"".join(attacker.tokenizer.token_bytes(i) for i in ids)


@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_from_its_checkpoint(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "AT_ONCE", 8)
    command = ["gfn_attacker.py", "--out", str(tmp_path), "--batch", "3", "--rows", "2"]
    for steps in ("1", "2"):
        monkeypatch.setattr(sys, "argv", [*command, "--steps", steps])
        example.main()
    log = (tmp_path / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "1", "2"]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["source"] == "gfn" and 0 <= row["unsafe-score"] <= 1 for row in rows)
    assert [row["id"] for row in rows] == ["gfn:0", "gfn:1"] and all(len(row["prompt"]) >= 15 and row["category"] for row in rows)
    # none of them is kept beside evaluation rows that they are; other settings do not go on from the checkpoint
    (tmp_path / "rows.jsonl").rename(tmp_path / "held_out.jsonl")
    monkeypatch.setattr(sys, "argv", [*command, "--steps", "2", "--evaluation", str(tmp_path / "held_out.jsonl")])
    example.main()
    assert not {row["prompt"] for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())} & {row["prompt"] for row in rows}
    monkeypatch.setattr(sys, "argv", [*command, "--steps", "2", "--seed", "1"])
    with pytest.raises(SystemExit, match="checkpoint.pt: trained with --seed 0, not 1"):
        example.main()


def test_a_checkpoint_keeps_its_warm_up_and_its_teacher(example, tmp_path):
    def run(steps, teacher):
        made = example.Run.__new__(example.Run)
        made.arguments, made.checkpoint = argparse.Namespace(steps=steps), tmp_path / "checkpoint.pt"
        made.log_z, made.adapter, made.buffer = torch.nn.Parameter(torch.zeros(())), [], example.Buffer(1, 0.5)
        made.optimizer, made.step, made.teacher, made.planned = torch.optim.AdamW([made.log_z]), 100, teacher, steps
        return made

    run(300, "a" * 64)._save()
    longer = run(3000, "a" * 64)
    longer._load()
    assert longer.planned == 300
    with pytest.raises(SystemExit, match=r"trained with a teacher of other files \(sha256 aaaaaaaaaaaa, now bbbbbbbbbbbb\)"):
        run(300, "b" * 64)._load()
    state = torch.load(longer.checkpoint)
    torch.save({name: state[name] for name in state if name not in ("teacher", "planned")}, longer.checkpoint)
    before = run(3000, "b" * 64)        # an older one is taken as it is
    before._load()
    assert before.planned == 3000 and before.step == 100
