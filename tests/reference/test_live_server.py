"""augment, respond and label against `python -m llama_cpp.server` on loopback. HARMAUG_MODELS: filled by `harmaug models fetch smollm2`."""
import json
import socket
import subprocess
import sys
import time
import urllib.request
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from harmaug import cli, guard_families, models
from harmaug.chat import ChatTemplate
from harmaug.data import read_rows
from harmaug.endpoint import EndpointConfig, EndpointLM, EndpointTeacher
from harmaug.generator import CausalLM, Request, SamplerConfig

CONFIG = """
[data]
seed = [{{ file = "{data}/seed.jsonl", limit = 16 }}]
[generator]
template = "{model}"
licence = "Apache-2.0"
[generator.endpoint]
url = "{url}"
model = "smollm2"
concurrency = 2
max_total_tokens = 100_000
[augment]
recipe = "paper"
samples = 6
benign = 6
exemplars = 3
rows_per_draw = 3
max_new_tokens = 24
[respond]
responses = "pairs"
max_new_tokens = 12
limit = 3
[label]
family = "llama-guard-1"
template = "policy.jinja"
cache = false
[label.endpoint]
url = "{url}"
model = "smollm2"
"""


@pytest.fixture(scope="module")
def model():
    path = models.resolve("smollm2")
    return next(path.glob("*.gguf")) if path.is_dir() else path


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    """A server of its own process, ended by its pid."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = open(tmp_path_factory.mktemp("server") / "log", "w+")
    process = subprocess.Popen([sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--host", "127.0.0.1", "--port", str(port),
                                "--n_ctx", "640", "--n_threads", "2", "--logits_all", "true"], stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, log.seek(0) or log.read()[-2000:]
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def test_the_prefix_is_gone_on_from_and_greedy_is_the_native_models(url, model):
    """A raw completion goes on behind the prefix, in the open turn, as the native engine does on the same weights."""
    template = ChatTemplate.read(model)
    served, native = EndpointLM(EndpointConfig(url=url, model="m"), template), CausalLM.from_pretrained(model, dtype="float32")
    messages, prefix = [{"role": "user", "content": "Name a colour of the sky."}], "The sky is often"
    prompt = served.chat_prompt(messages, prefix)
    assert prompt == native.chat_prompt(messages, prefix) and prompt.endswith("assistant\n" + prefix)
    sampling = SamplerConfig(temperature=0, max_new_tokens=4)
    (_, _, got), = served.stream([Request(prompt=prompt)], sampling=sampling)
    want, = native.generate(prompt, n=1, max_new_tokens=4, temperature=0)
    assert got.text.split()[0] == want.text.split()[0] and got.tokens >= 1


def test_label_by_logprobs_is_near_the_native_teachers(url, model):
    """Log-probabilities of the label's first token, as this model happens to give them: the server's weights are rounded, ours are widened."""
    template = ChatTemplate.read(model)
    family = guard_families.GuardFamily(name="colours", unsafe=("red", "Red"), safe=("blue", "Blue"), before="The colour is ")
    prompts = ["Answer red or blue: the colour of blood.", "Answer red or blue: the colour of the sky."]
    served = EndpointTeacher(EndpointConfig(url=url, model="m"), family, template=template)
    native = guard_families.LanguageModelTeacher(CausalLM.from_pretrained(model, dtype="float32"), family, template=template)
    got, want = served.score(prompts), native.score(prompts)
    assert got.dtype == np.float32 and served.account["requests"] == 2 and got == pytest.approx(want, abs=0.25)


def test_the_row_stages_end_to_end(url, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("policy.jinja").write_text("<|im_start|>user\n{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                                    "Is this conversation safe or unsafe?<|im_end|>\n<|im_start|>assistant\nThis conversation is")
    Path("c.toml").write_text(CONFIG.format(url=url, model=model, data=resources.files("harmaug") / "data"))
    assert cli.main(["augment", "c.toml", "--out", "r", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["augment"]
    assert told["requests"] == 12 and told["tokens_by"] == "tokenizer" and "I have an idea for a prompt:" in told["ends"][-1]
    assert cli.main(["run", "c.toml", "--out", "r", "--quiet"]) == 0
    stages = json.loads(Path("r/run.json").read_text())["stages"]
    augment, respond, label = (stages[name]["account"] for name in ("augment", "respond", "label"))
    assert augment["done"] == 12 and augment["kept"] >= 1 and 0 < augment["tokens"] <= told["completion_tokens"]
    assert respond["done"] == respond["asked"] and respond["kept"] >= 1
    rows = read_rows("r/labelled.jsonl")
    assert len(rows) == label["rows"] == label["done"] and all(0 <= row.unsafe_score <= 1 for row in rows)
    assert label["requests"] == len(rows) and label["prompt_tokens"] > 0
    assert all(row.response.startswith(row.extra["prefix"]) for row in read_rows("r/pairs.jsonl"))
