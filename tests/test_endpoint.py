"""harmaug.endpoint: what goes to an OpenAI-compatible server, and what comes of timeouts, 429, 500, cut and garbled answers."""
import math
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from fake_server import serving

from harmaug.chat import ChatTemplate
from harmaug.data import Row
from harmaug.endpoint import Endpoint, EndpointConfig, EndpointError, EndpointLM, EndpointTeacher
from harmaug.generator import Request, SamplerConfig, in_order
from harmaug.guard_families import LabelReading
from harmaug.teacher import CachedTeacher, label_rows

TEMPLATE = ChatTemplate(source="{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}")


def complete(path, payload):
    text = f"{payload['prompt']} {payload['seed'] % 97}"
    return 200, {"choices": [{"text": text, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}, {}


def config(server, **options):
    return EndpointConfig(**{"url": server.url, "model": "m", "concurrency": 4, "timeout": 5, **options})


@pytest.fixture
def quick(monkeypatch):
    """Pauses between tries that do not take a test's time."""
    waited = []
    plain = Endpoint._pause
    monkeypatch.setattr(Endpoint, "_pause", lambda self, seconds: (waited.append(seconds), plain(self, min(seconds, 0.001)))[1])
    return waited


def requests_of(n):
    return [Request(prompt=f"p{i}", n=1 + i % 3, first_index=10 * i, stop=("\n",)) for i in range(n)]


def test_generator_order_payload_and_account(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with serving(lambda *a: (time.sleep(random.random() / 100), complete(*a))[1]) as server:
        lm = EndpointLM(config(server, prompt_price=10, completion_price=100), TEMPLATE)
        sampling = SamplerConfig(temperature=0.5, top_k=7, max_new_tokens=9)
        out = list(in_order(lm, requests_of(20), batch_size=32, sampling=sampling))
        again = list(in_order(lm, requests_of(20), batch_size=3, sampling=sampling))
    assert [len(group) for group in out] == [1 + i % 3 for i in range(20)]
    assert all(g.text.startswith(f"p{i} ") and g.tokens == 2 and math.isnan(g.logprob) for i, group in enumerate(out) for g in group)
    assert [[g.text for g in group] for group in out] == [[g.text for g in group] for group in again]      # a sample's seed is its index's
    assert len({payload["seed"] for _, payload, _ in server.seen}) == 39
    path, payload, headers = server.seen[0]
    assert path == "/v1/completions" and headers["Authorization"] == "Bearer sk-test"
    assert {key: payload[key] for key in ("model", "max_tokens", "temperature", "top_k", "stop")} == \
        {"model": "m", "max_tokens": 9, "temperature": 0.5, "top_k": 7, "stop": ["\n"]} and "top_p" not in payload
    assert server.most_live <= 4
    account = lm.endpoint.account
    assert (account["requests"], account["prompt_tokens"], account["completion_tokens"], account["retries"]) == (78, 234, 156, 0)
    assert account["cost"] == pytest.approx((234 * 10 + 156 * 100) / 1e6)
    assert lm.chat_prompt([{"role": "user", "content": "hi"}], "Sure:") == "<user>hi<assistant>Sure:"


def test_faults_are_tried_again(quick):
    rng, lock, left = random.Random(0), threading.Lock(), {}

    def answer(path, payload):
        with lock:
            tries = left.setdefault(payload["seed"], rng.randrange(4))
            left[payload["seed"]] -= 1
        if tries <= 0:
            return complete(path, payload)
        return random.choice([(429, {"error": {"code": "slow_down"}}, {"Retry-After": "7"}), (500, b"oops", {}), (200, b"<html>", {}),
                              (200, None, {}), (200, b"[1]", {}), (503, {}, {"Retry-After": "Thu, 26 Nov 2026 10:00:00 GMT"})])

    with serving(answer) as server:
        lm = EndpointLM(config(server), TEMPLATE)
        out = list(in_order(lm, requests_of(20), batch_size=32, sampling=SamplerConfig()))
        assert [len(group) for group in out] == [1 + i % 3 for i in range(20)] and lm.endpoint.account["retries"] > 10
        assert max(quick) >= 7      # the server's own pause


def test_half_of_a_surrogate_pair_is_the_replacement_character():
    with serving(lambda *a: (200, {"choices": [{"text": "a \ud83d b \U0001f600"}]}, {})) as server:
        (_, _, made), = EndpointLM(config(server), TEMPLATE).stream([Request(prompt="p")])
    assert made.text == "a \ufffd b \U0001f600"


@pytest.mark.parametrize("answer, message", [
    ((500, b"secret prompt", {}), r"status 500, after 3 tries; what a run folder holds is kept"),
    ((401, {"error": {"message": "secret prompt", "code": "invalid_api_key"}}, {}), r"completions: status 401 \(invalid_api_key\)"),
    ((200, b"garbage", {}), "an answer that is no JSON object, after 3 tries"),
    ((200, None, {}), "RemoteProtocolError, after 3 tries"),
    ((200, {"choices": []}, {}), r"an answer without choices\[0\].text"),
])
def test_what_stays_wrong_is_an_error_without_text(quick, answer, message):
    with serving(lambda *a: answer) as server:
        lm = EndpointLM(config(server, retries=2), TEMPLATE)
        with pytest.raises(EndpointError, match=message) as caught:
            list(lm.stream(requests_of(3)))
        assert "secret" not in str(caught.value)


def test_timeouts_and_no_server(quick):
    gate = threading.Event()
    with serving(lambda *a: (gate.wait(10), complete(*a))[1]) as server:
        lm = EndpointLM(config(server, retries=1, timeout=0.2), TEMPLATE)
        begun = time.monotonic()
        with pytest.raises(EndpointError, match="ReadTimeout, after 2 tries"):
            list(lm.stream(requests_of(3)))
        assert time.monotonic() - begun < 5
        gate.set()
        url = server.url
    with pytest.raises(EndpointError, match="ConnectError, after 1 tries"):
        list(EndpointLM(EndpointConfig(url=url, model="m", retries=0), TEMPLATE).stream(requests_of(1)))


def test_an_interrupt_gives_up_at_once():
    """Ctrl-C during a request that is not answered: no thread is waited for."""
    with serving(lambda *a: (time.sleep(3), complete(*a))[1]) as server:
        code = ("import harmaug.endpoint as e, harmaug.chat as c, harmaug.generator as g\n"
                f"lm = e.EndpointLM(e.EndpointConfig(url={server.url!r}, model='m'), c.ChatTemplate(source=''))\n"
                "print('begun', flush=True)\n"
                "list(lm.stream([g.Request(prompt='p', n=4)]))\n")
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "begun\n"
        while not server.seen:
            time.sleep(0.01)
        begun = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=20)
        assert time.monotonic() - begun < 2 and "KeyboardInterrupt" in err


def test_budget_and_rate():
    with serving(complete) as server:
        lm = EndpointLM(config(server, max_total_tokens=50, concurrency=1), TEMPLATE)
        with pytest.raises(EndpointError, match="the budget of tokens is spent: 50 of 50"):
            list(lm.stream(requests_of(20)))
        assert len(server.seen) == 10     # five tokens each
        lm = EndpointLM(config(server, max_cost=1e-5, prompt_price=1, concurrency=1), TEMPLATE)
        with pytest.raises(EndpointError, match="the budget of money is spent"):
            list(lm.stream(requests_of(20)))
        begun = time.monotonic()
        list(EndpointLM(config(server, requests_per_minute=1200), TEMPLATE).stream([Request(prompt="p", n=8)]))
        assert time.monotonic() - begun >= 7 * 0.05


@pytest.mark.parametrize("options, message", [({"url": "ftp://x"}, "url must begin with http"), ({"url": "http://x\n"}, "url: Invalid non-printable"),
                                              ({"concurrency": 0}, "concurrency must be in"),
                                              ({"retries": -1}, "retries must be >= 0"), ({"timeout": 0.0}, "timeout must be in")])
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        EndpointConfig(**{"url": "http://x", "model": "m", **options})


# -- teachers --


def tops(**logprobs):
    return {key: math.log(value) for key, value in logprobs.items()}


def chat_answer(*tokens):
    content = [{"token": token, "logprob": max(told.values()), "top_logprobs": [{"token": t, "logprob": v} for t, v in told.items()]} for token, told in tokens]
    return 200, {"choices": [{"logprobs": {"content": content}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}, {}


def raw_answer(*tokens):
    return 200, {"choices": [{"text": "", "logprobs": {"tokens": [t for t, _ in tokens], "top_logprobs": [told for _, told in tokens]}}]}, {}


def test_chat_teacher_reads_the_label_behind_white_space():
    with serving(lambda *a: chat_answer(("\n\n", tops(x=0.5)), ("safe", tops(safe=0.6, uns=0.3, s=0.1)))) as server:
        got = EndpointTeacher(config(server), "llama-guard-3").score(["a", "b"], ["c", None])
    assert got == pytest.approx([0.3] * 2)     # "s" begins the one label, "uns" the other
    assert [message["role"] for message in server.seen[0][1]["messages"]] in (["user", "assistant"], ["user"])
    assert server.seen[0][0] == "/v1/chat/completions" and server.seen[0][1]["top_logprobs"] == 20


def test_raw_teacher_with_earlier_lines():
    answer = [(" no", tops(no=0.9, yes=0.1)), ("\n", {}), ("Response", {}), (" refusal:", {}), (" no", {}), ("\nHarmful", {}), (" response:", {}),
              (" yes", {" yes": math.log(0.8), " no": math.log(0.2)})]
    with serving(lambda path, payload: raw_answer(*answer) if "<assistant>with" in payload["prompt"] else raw_answer((" yes", tops(yes=0.4, no=0.6)))) as server:
        teacher = EndpointTeacher(config(server), "wildguard", template=TEMPLATE)
        assert teacher.score(["a", "b"], ["with", None]) == pytest.approx([0.8, 0.4])
    prompts = {payload["prompt"]: payload["max_tokens"] for _, payload, _ in server.seen}
    assert prompts == {"<user>a<assistant>with<assistant>Harmful request:": 48, "<user>b<assistant>Harmful request:": 1}


@pytest.mark.parametrize("told, value", [
    (tops(safe=0.9, x=0.06, y=0.02), 0.02 / 0.92),     # at most what the tokens leave: 0.02
    (tops(unsafe=0.5, x=0.3, y=0.01), 0.5 / 0.51),     # at most the least probable of them
    (tops(x=0.7, y=0.2), 0.5),
])
def test_a_label_that_is_not_told_is_bounded(told, value):
    with serving(lambda *a: raw_answer(("x", told))) as server:
        teacher = EndpointTeacher(config(server), "llama-guard-2", template=TEMPLATE)
        assert teacher.score(["a"]) == pytest.approx([value]) and teacher.account["bounded"] == 1


@pytest.mark.parametrize("told, value", [({"I": -0.001, "The": -8}, math.exp(-8)), (tops(x=0.7, y=0.2), 0.1), ({}, 0.5)])
def test_the_full_probability_of_a_label_that_is_not_told_is_bounded_too(told, value):
    teacher = EndpointTeacher(EndpointConfig(url="http://x", model="m"), "llama-guard-2", reading=LabelReading(definition="full"))
    assert teacher._value(told) == pytest.approx(value)


def test_answers_before_one_that_fails_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HARMAUG_CACHE", str(tmp_path))
    status = [400]

    def answer(path, payload):
        _, body, _ = raw_answer(("x", tops(safe=0.75, unsafe=0.25)))
        return status[0] if payload["prompt"].startswith("<user>23") else 200, body, {}

    rows = [(f"file, row {i + 1}", Row(prompt=str(i))) for i in range(24)]
    with serving(answer) as server:
        first, again = (CachedTeacher(EndpointTeacher(config(server), "llama-guard-2", template=TEMPLATE), "m") for _ in range(2))
        got = []
        with pytest.raises(EndpointError, match="status 400"):
            got.extend(label_rows(first, rows))
        assert len(got) == 23 and len(server.seen) == 24
        status[0] = 200
        assert [score for *_, score in label_rows(again, rows)] == [0.25] * 24 and again.account["requests"] == 1 and again.account["cached"] == 23


@pytest.mark.parametrize("bos, begin, prompt", [("<s>", "{{ bos_token }}[user]", "[user]a[guard]"), ("<s>", "<s>[user]", "[user]a[guard]"),
                                                ("[", "[user]", "[user]a[guard]"), ("", "[user]", "[user]a[guard]")])
def test_the_server_begins_the_sequence(bos, begin, prompt):
    template = ChatTemplate(source=begin + "{{ messages[0].content }}[guard]", bos_token=bos)
    with serving(lambda path, payload: raw_answer(("x", tops(safe=0.9))) if "logprobs" in payload else complete(path, payload)) as server:
        EndpointTeacher(config(server), "llama-guard-2", template=template, top_logprobs=5).score(["a"])
        lm = EndpointLM(config(server), template)
        list(lm.stream([Request(prompt=lm.chat_prompt([{"role": "user", "content": "a"}]), n=1)]))
    assert [payload["prompt"] for _, payload, _ in server.seen] == [prompt] * 2 and server.seen[0][1]["logprobs"] == 5


def test_teacher_errors(quick):
    with serving(lambda *a: (200, {"choices": [{"text": "safe"}]}, {})) as server:
        with pytest.raises(EndpointError, match="an answer without log-probabilities"):
            EndpointTeacher(config(server), "llama-guard-2", template=TEMPLATE).score(["a"])
    with serving(lambda *a: chat_answer((" ", tops(x=0.5)))) as server, pytest.raises(EndpointError, match="ends before its label; is the model of the family"):
        EndpointTeacher(config(server), "llama-guard-2").score(["a"])
    with pytest.raises(ValueError, match="the family shieldgemma needs a template"):
        EndpointTeacher(EndpointConfig(url="http://x", model="m"), "shieldgemma")
    assert EndpointTeacher(EndpointConfig(url="http://x", model="m"), "llama-guard-2").score([]).dtype == np.float32
