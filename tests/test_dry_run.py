"""harmaug.dry_run: what it counts is what is sent, and it asks and writes nothing."""
import json
import random
from pathlib import Path

import fake_generator
import pytest
from fake_server import serving
from test_pipeline import write_llama

from harmaug import cli
from harmaug.tokenizer import Tokenizer

CONFIG = """
[data]
seed = ["seed.jsonl"]
[generator]
template = "t.jinja"
[generator.endpoint]
url = "{url}"
model = "m"
prompt_price = 2.0
completion_price = 5.0
[augment]
recipe = "paper"
samples = 20
benign = 9
rows_per_draw = 4
[respond]
responses = "pairs"
max_new_tokens = 7
[label]
family = "llama-guard-2"
cache = false
[label.endpoint]
url = "{url}"
model = "g"
"""
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def answer(path, payload):
    if "logprobs" in payload:
        told = {"token": " safe", "logprob": -0.1, "top_logprobs": [{"token": " safe", "logprob": -0.1}, {"token": " unsafe", "logprob": -2.4}]}
        return 200, {"choices": [{"logprobs": {"content": [told]}}]}, {}
    rng = random.Random(f"{payload['prompt']}{payload['seed']}")
    text = f" {rng.choice(fake_generator.VERBS)} {rng.choice(fake_generator.THINGS)} {rng.choice(fake_generator.WAYS)} {rng.randrange(10**9)}"
    return 200, {"choices": [{"text": text, "finish_reason": "stop"}]}, {}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("seed.jsonl").write_text("".join(json.dumps(row.to_dict()) + "\n" for row in fake_generator.seed_rows()))
    Path("t.jinja").write_text(TEMPLATE)
    return tmp_path


def dry(capsys, verb, *argv):
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert cli.main([verb, *argv, "--out", "r", "--dry-run", "--json"]) == 0
    assert sorted(Path().rglob("*")) == before
    return json.loads(capsys.readouterr().out)


def test_what_is_counted_is_what_is_sent(folder, capsys):
    with serving(answer) as server:
        Path("c.toml").write_text(CONFIG.format(url=server.url))
        found = dry(capsys, "run", "c.toml")
        assert not server.seen
        assert found["respond"] == found["label"] == {"waits_for": "augment"}
        told = found["augment"]
        assert told["ends"] == ["\n7.", "<assistant>I have an idea for a prompt:"] and told["tokens_by"] == "bytes"
        for stage in ("augment", "respond", "label"):
            told = dry(capsys, stage, "c.toml")[stage]
            server.seen.clear()
            assert cli.main([stage, "c.toml", "--out", "r", "--quiet"]) == 0
            payloads = [payload for _, payload, _ in server.seen]
            texts = [p.get("prompt") or "\n".join(m["content"] for m in p["messages"]) for p in payloads]
            assert told["requests"] == len(payloads) > 10
            assert told["prompt_tokens"] == sum(len(t.encode()) + 1 for t in texts) and told["completion_tokens"] == sum(p["max_tokens"] for p in payloads)
            assert told["cost"] == (pytest.approx((2 * told["prompt_tokens"] + 5 * told["completion_tokens"]) / 1e6) if stage != "label" else 0)
            assert dry(capsys, stage)[stage]["requests"] == 0      # and the configuration of the run
        assert told["tokens_by"].endswith("without the server's own template")


def test_native_and_text_without_rows(folder, capsys):
    lm = write_llama(folder / "tiny.gguf")
    Path("c.toml").write_text(f'[data]\nseed = ["seed.jsonl"]\n[generator]\nmodel = "{lm}"\n[augment]\nsamples = 10\nbenign = 6\nrows_per_draw = 5\nmax_new_tokens = 3\n[label]\n')
    told = dry(capsys, "augment", "c.toml")["augment"]
    assert (told["requests"], told["completion_tokens"], told["cost"], told["tokens_by"]) == (16, 48, None, "tokenizer")
    assert cli.main(["run", "c.toml", "--out", "r", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("augment: 16 requests, at most ") and not any(row.prompt[:20] in out for row in fake_generator.seed_rows())
    from harmaug.augment import AugmentConfig, Augmenter
    prompts = [draw.prompt for draw in Augmenter(fake_generator.FakeGenerator(), AugmentConfig(samples=10, benign=6, rows_per_draw=5)).draws(fake_generator.seed_rows())]
    assert told["prompt_tokens"] == sum(len(Tokenizer.from_pretrained(lm).encode(prompt)) for prompt in prompts)
    Path("c.toml").write_text('[data]\nseed = ["seed.jsonl"]\n')
    assert cli.main(["run", "c.toml", "--out", "r", "--dry-run"]) == 2 and "a dry run is of augment, respond or label" in capsys.readouterr().err
