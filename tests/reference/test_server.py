"""`harmaug serve` with the openai client, and forks under torch and gunicorn."""
from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from harmaug import _C
from harmaug.guard import Guard

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_guard import PROMPTS, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = write(tmp_path_factory.mktemp("server") / "guard")
    return made


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[openai.OpenAI]:
    command = [sys.executable, "-m", "harmaug", "serve", "--model", str(folder), "--port", "0", "--max-body", "50000"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    url = child.stderr.readline().split()[-1]
    with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, http_client=httpx.Client()) as client:
        yield client
    child.terminate()
    child.communicate(timeout=30)
    assert child.returncode == 0


def test_the_openai_client(client: openai.OpenAI, folder: Path) -> None:
    want = Guard.from_pretrained(folder).score(PROMPTS)
    answer = client.moderations.create(model="omni-moderation-latest", input=PROMPTS)
    got = [result.category_scores.model_dump()["unsafe"] for result in answer.results]
    np.testing.assert_array_equal(np.array(got, dtype=np.float32), want)
    assert [result.flagged for result in answer.results] == (want >= 0.5).tolist()
    assert answer.model == "guard" and answer.id.startswith("modr-")
    one = client.moderations.create(input=PROMPTS[2])
    assert np.float32(one.results[0].category_scores.to_dict()["unsafe"]) == want[2]
    parts = client.moderations.create(input=[{"type": "text", "text": PROMPTS[2]}])
    assert len(parts.results) == 1 and parts.results[0].flagged == one.results[0].flagged


def test_errors_are_those_of_the_openai_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="only text can be judged, got content of type image_url"):
        client.moderations.create(input=[{"type": "image_url", "image_url": {"url": "https://x"}}])
    with pytest.raises(openai.APIStatusError, match="the body is larger than 50000 bytes") as caught:
        client.moderations.create(input="a" * 60_000)
    assert caught.value.status_code == 413
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="x", messages=[])


FORK = """
import os, signal, sys
{first}
import numpy as np
from harmaug import Guard
{second}
guard = Guard.from_pretrained(sys.argv[1])
prompts = ["a b c " * (i % 9) for i in range(2000)]
if {score}:
    guard.score(prompts)
torch.set_num_threads(2)
torch.randn(700, 700) @ torch.randn(700, 700)
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    np.save(sys.argv[1] + "/child.npy", guard.score(prompts))
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
torch.randn(700, 700) @ torch.randn(700, 700)
assert (np.load(sys.argv[1] + "/child.npy") == guard.score(prompts)).all()
"""


@pytest.mark.parametrize("before", [True, False], ids=["torch-before", "torch-after"])
@pytest.mark.parametrize("score", [True, False], ids=["score", "no-score"])
def test_forks_beside_torch(folder: Path, before: bool, score: bool) -> None:
    code = FORK.format(first="import torch" * before, second="import torch" * (not before), score=score)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


WSGI = """
import json, os
from harmaug import Guard
guard = Guard.from_pretrained({folder!r})
prompts = ["a b c " * (i % 9) for i in range(300)]
if {score}:
    from harmaug import _C
    import numpy as np
    _C.matmul(np.ones((512, 512)), np.ones((512, 512)), n_threads=2)
    guard.score(prompts)

def app(environ, start_response):
    start_response("200 OK", [])
    return [json.dumps([os.getpid(), guard.score(prompts).tolist()]).encode()]
"""


@pytest.mark.parametrize("score", [True, False], ids=["score", "no-score"])
def test_gunicorn_preload(folder: Path, tmp_path: Path, score: bool) -> None:
    (tmp_path / "served.py").write_text(WSGI.format(folder=str(folder), score=score))
    command = [sys.executable, "-m", "gunicorn", "--preload", "-w", "2", "-b", f"unix:{tmp_path}/s", "--chdir", str(tmp_path), "served:app"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    want = Guard.from_pretrained(folder).score(["a b c " * (i % 9) for i in range(300)]).tolist()
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=f"{tmp_path}/s"), timeout=60) as client:
            workers = set()
            while not (tmp_path / "s").exists() and child.poll() is None:
                time.sleep(0.05)
            for _ in range(200):
                pid, got = client.get("http://x/", headers={"connection": "close"}).json()
                assert got == want
                workers.add(pid)
                if len(workers) == 2:
                    break
            assert workers and child.pid not in workers
    finally:
        child.terminate()
        said = child.communicate(timeout=30)[1]
    warned = said.count("forked after its parent had run threads")
    assert warned == (len(workers) if score and _C.build_info()["openmp"] else 0), said
