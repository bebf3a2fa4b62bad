"""harmaug.server: the forms of requests, limits, batching, stopping. With the openai client: tests/reference/test_server.py."""
import errno
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from starlette.testclient import TestClient
from test_guard import PROMPTS, RESPONSES, write

from harmaug import server
from harmaug.guard import Guard


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("server") / "guard")


@pytest.fixture(scope="module")
def guard(folder):
    return Guard.from_pretrained(folder)


@pytest.fixture(scope="module")
def client(guard):
    with TestClient(server.create_app(guard, name="mine", max_body=100_000)) as client:
        yield client


class Slow:
    """A guard that scores when it is told to, and remembers its batches."""

    threshold = 0.5

    def __init__(self, guard, open_at_once=False):
        self.guard, self.gate, self.batches = guard, threading.Event(), []
        if open_at_once:
            self.gate.set()

    def score_details(self, prompts, responses):
        self.batches.append(list(prompts))
        assert self.gate.wait(30)
        return self.guard.score_details(prompts, responses)


def shortest(scores):
    return [float(str(score)) for score in scores]


def error(response, status):
    assert response.status_code == status and response.headers["content-type"] == "application/json", response.text
    given = response.json()["error"]
    assert set(given) == {"message", "type", "param", "code"} and given["type"] == ("invalid_request_error" if status < 500 else "server_error")
    return given["message"]


# -- forms --

def test_moderations(client, guard):
    want = shortest(guard.score(PROMPTS))
    for given, scores in ((PROMPTS, want), (PROMPTS[2], want[2:3]), ([], []), ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], shortest(guard.score("a\nb")))):
        answer = client.post("/v1/moderations", json={"input": given, "model": "omni-moderation-latest"}).json()
        assert answer["id"].startswith("modr-") and answer["model"] == "mine"
        assert [r["category_scores"] for r in answer["results"]] == [{"unsafe": score} for score in scores]
        for r, score in zip(answer["results"], scores, strict=True):
            assert r["flagged"] is (score >= 0.5) and r["categories"] == {"unsafe": r["flagged"]} and r["category_applied_input_types"] == {"unsafe": ["text"]}


def test_score(client, guard):
    long = "a b c " * 40
    details = guard.score_details([*PROMPTS, long], [*RESPONSES, None])
    rows = [{"prompt": p, "response": r} for p, r in zip(PROMPTS, RESPONSES, strict=True)] + [{"prompt": long}]
    answer = client.post("/score", json={"rows": rows}).json()["rows"]
    assert [r["score"] for r in answer] == shortest(details.score) and [r["n_windows"] for r in answer] == details.n_windows.tolist()
    assert answer[5]["window"] == details.window[5] and answer[5]["n_tokens"] == details.n_tokens[5] and answer[5]["truncated"] == 0
    assert client.post("/score", json=rows[1]).json() == answer[1] == {**answer[1], "flagged": answer[1]["score"] >= 0.5}
    chat = [{"role": "user", "content": "a b c"}, {"role": "assistant", "content": "d e f"}]
    assert client.post("/score", json={"prompt": chat}).json()["score"] == shortest(guard.score(["a b c"], ["d e f"]))[0]
    assert client.post("/score", json={"rows": []}).json() == {"rows": []}


def test_threshold_and_health(guard):
    with TestClient(server.create_app(guard, threshold=0)) as client:
        assert client.get("/healthz").json() == {"status": "ok", "model": "harmaug", "threshold": 0, "waiting": 0}
        assert client.post("/score", json={"prompt": "a"}).json()["flagged"] is True


@pytest.mark.parametrize("path, body, message", [
    ("/score", b"{", "body: wrong JSON: "), ("/score", b"\xff", "body: not UTF-8"), ("/score", b"", "body: wrong JSON"), ("/score", b'{"prompt": "\\ud800"}', "body: "),
    ("/score", b"[1]", 'the body must be {"prompt"'), ("/score", b'{"rows": 3}', "the body must be"), ("/score", b'{"rows": [{"prompt": "a"}, {}]}', "row 1: a row must be an object with a prompt"),
    ("/score", b'{"prompt": 3}', "row 0: the prompt must be a str or a list of messages, got int"), ("/score", b'{"prompt": "a", "response": 3}', "row 0: the response must be a str or None, got int"),
    ("/score", b'{"prompt": []}', "row 0: the prompt must be"), ("/score", b"[" * 50_000, "nested too deeply"),
    ("/v1/moderations", b"{}", "input must be a string"), ("/v1/moderations", b'{"input": [1]}', "input must be a string"), ("/v1/moderations", b'{"input": null}', "input must be"),
    ("/v1/moderations", b'{"input": [{"type": "image_url", "image_url": {}}]}', "input: only text can be judged, got content of type image_url"), ("/v1/moderations", b'"a"', "input must be"),
])
def test_bad_requests(client, path, body, message):
    assert message in error(client.post(path, content=body), 400)


def test_other_paths_and_methods(client):
    assert error(client.get("/nothing"), 404) == "Not Found" and error(client.get("/score"), 405) == "Method Not Allowed"


def test_a_row_that_the_guard_refuses_names_itself_and_spares_others(folder):
    guard = Guard.from_pretrained(folder, long="error")
    gated = Slow(guard)
    with TestClient(server.create_app(gated)) as client, ThreadPoolExecutor(3) as pool:
        first = pool.submit(client.post, "/score", json={"prompt": "x"})
        while not gated.batches:
            time.sleep(0.01)
        bad = pool.submit(client.post, "/score", json={"rows": [{"prompt": "a"}, {"prompt": "a " * 40}]})
        good = pool.submit(client.post, "/score", json={"prompt": "b"})
        time.sleep(0.2)
        gated.gate.set()
        assert error(bad.result(), 400) == "row 1: has 42 tokens, the guard reads at most 40; long='windows' or 'truncate' reads it"
        assert good.result().json()["score"] == shortest(guard.score("b"))[0] and first.result().status_code == 200


# -- limits --

def test_large_bodies(client):
    assert error(client.post("/score", json={"prompt": "a" * 100_000}), 413) == "the body is larger than 100000 bytes"

    def parts():
        for _ in range(200):
            yield b" " * 1000

    assert error(client.post("/score", content=parts()), 413) == "the body is larger than 100000 bytes"
    assert client.post("/score", json={"prompt": "a" * 90_000}).json()["n_windows"] == 1


def test_full_queues_and_timeouts(guard, caplog):
    slow = Slow(guard)
    with TestClient(server.create_app(slow, max_queue=2, timeout=3)) as client, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(client.post, "/score", json={"prompt": "secret"})]
        while not slow.batches:
            time.sleep(0.01)
        waiting += [pool.submit(client.post, "/score", json={"prompt": "secret"}) for _ in range(2)]
        while client.get("/healthz").json()["waiting"] < 2:
            time.sleep(0.01)
        refused = client.post("/score", json={"prompt": "secret"})
        assert error(refused, 503) == "2 requests are waiting already; try again" and refused.headers["retry-after"] == "1" and refused.json()["error"]["code"] == "queue_full"
        for request in waiting:
            late = request.result()
            assert error(late, 503) == "not scored within 3 seconds; try again" and late.headers["retry-after"] == "1"
        slow.gate.set()
        assert client.post("/score", json={"prompt": "a"}).status_code == 200
    assert slow.batches == [["secret"], ["a"]]      # what gave up is not scored
    assert "secret" not in caplog.text


def test_errors_of_our_own_are_named_by_kind_only(caplog):
    class Broken:
        threshold = 0.5

        def score_details(self, prompts, responses):
            raise RuntimeError(prompts[0])

    with TestClient(server.create_app(Broken())) as client:
        for _ in range(2):
            assert error(client.post("/score", json={"prompt": "secret"}), 500) == "internal error"
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text


@pytest.mark.parametrize("options, match", [({"threshold": 2}, r"threshold must be in \[0, 1\], got 2"), ({"max_body": 0}, "max_body must be > 0"), ({"max_queue": 0}, "max_queue must be > 0"),
                                            ({"timeout": 0}, "timeout must be > 0, got 0")])
def test_options_are_checked(guard, options, match):
    with pytest.raises(ValueError, match=match):
        server.create_app(guard, **options)


# -- batching --

def test_requests_are_scored_together_and_fairly(guard):
    slow = Slow(guard)
    big = [{"prompt": "a" * (i % 30)} for i in range(200)]
    with TestClient(server.create_app(slow)) as client, ThreadPoolExecutor(12) as pool:
        first = pool.submit(client.post, "/score", json={"prompt": "first"})
        while not slow.batches:
            time.sleep(0.01)
        large = pool.submit(client.post, "/score", json={"rows": big})
        while client.get("/healthz").json()["waiting"] < 1:
            time.sleep(0.01)
        small = [pool.submit(client.post, "/score", json={"prompt": "b" * i}) for i in range(10)]
        while client.get("/healthz").json()["waiting"] < 11:
            time.sleep(0.01)
        slow.gate.set()
        assert [r["score"] for r in large.result().json()["rows"]] == shortest(guard.score([row["prompt"] for row in big]))
        assert [r.result().json()["score"] for r in small] == shortest(guard.score(["b" * i for i in range(10)]))
        assert first.result().status_code == 200
    assert [len(batch) for batch in slow.batches] == [1, 64, 64, 64, 18] and {"b" * i for i in range(10)} <= {*slow.batches[1]}


# -- the process --

@pytest.fixture
def process(request, folder):
    """(port, Popen) of `harmaug serve`; an indirect parameter is its --timeout."""
    timeout = str(getattr(request, "param", 20))
    child = subprocess.Popen([sys.executable, "-m", "harmaug", "serve", "--model", str(folder), "--port", "0", "--timeout", timeout], stderr=subprocess.PIPE, text=True)
    line = child.stderr.readline()
    assert line.startswith("listening on http://127.0.0.1:"), line
    yield int(line.rsplit(":", 1)[1]), child
    if child.poll() is None:
        child.kill()
    child.communicate()


def ask(port, body, timeout=30):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    connection.request("POST", "/score", body)
    response = connection.getresponse()
    value = json.loads(response.read())
    connection.close()
    return response.status, value


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_under_way_are_answered_when_it_stops(process, guard, number):
    port, child = process
    rows = ["a b c " * 200 + "d" * (i % 7) for i in range(150)]
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(ask, port, json.dumps({"rows": [{"prompt": p} for p in rows]}))
        while not ask(port, '{"prompt": "a"}')[0] == 200:
            pass
        while not request.done() and json.loads(_get(port, "/healthz"))["waiting"] == 0:
            time.sleep(0.005)
        child.send_signal(number)
        status, value = request.result()
    assert status == 200 and [r["score"] for r in value["rows"]] == shortest(guard.score(rows))
    said = child.communicate(timeout=20)[1]
    assert child.returncode == 0 and "stopped after" in said and "Traceback" not in said
    with pytest.raises(OSError):
        ask(port, "{}")


def _get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    body = connection.getresponse().read()
    connection.close()
    return body


def test_slow_clients_hold_up_nobody(process, guard):
    port, _ = process
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(64)]
    body = b'{"prompt": "a b c"}'
    for i, s in enumerate(slow):
        s.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:5] if i % 2 else b"POST /sco")
    want = shortest(guard.score("a b c"))[0]
    begun = time.monotonic()
    for _ in range(50):
        assert ask(port, body)[1]["score"] == want
    assert time.monotonic() - begun < 10
    for i, s in enumerate(slow):
        s.sendall(body[5:] if i % 2 else b"re HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    for s in slow:
        with s, s.makefile("rb") as file:
            assert file.readline().startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("process", [1.0], indirect=True)
def test_clients_that_never_finish_are_let_go(process, guard):
    port, _ = process

    def lasts(first, drip, keep_alive=False):
        """Seconds until the server closes, and what it said."""
        with socket.create_connection(("127.0.0.1", port)) as s:
            s.settimeout(0.1)
            begun, said = time.monotonic(), b""
            s.sendall(first)
            if keep_alive:
                while not said.endswith(b"}"):
                    said += s.recv(4096)
                begun = time.monotonic()
            while time.monotonic() - begun < 15:
                try:
                    s.sendall(drip)
                    got = s.recv(4096)
                    if not got:
                        break
                    said += got
                except TimeoutError:
                    continue
                except OSError:
                    break
            return time.monotonic() - begun, said

    headers = b"POST /score HTTP/1.1\r\nHost: x\r\n"
    whole = headers + b"Content-Length: 15\r\n\r\n" + b'{"prompt": "a"}'
    cases = {"silent": (b"", b""), "headers": (headers, b"X: y\r\n"), "body": (headers + b"Content-Length: 10000\r\n\r\n", b" "),
             "unread body": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n", b" "), "second": (whole, b"P", True)}
    with ThreadPoolExecutor(len(cases)) as pool:
        found = {name: pool.submit(lasts, *case) for name, case in cases.items()}
        for name, done in found.items():
            taken, said = done.result()
            assert 0.8 < taken < 10, (name, taken)
            status = {"body": b"HTTP/1.1 408", "unread body": b"HTTP/1.1 200", "second": b"HTTP/1.1 200"}.get(name, b"")
            assert said.startswith(status) and bool(said) == bool(status), (name, said)
    assert ask(port, b'{"prompt": "a b c"}')[1]["score"] == shortest(guard.score("a b c"))[0]


def test_an_answer_that_is_not_read(guard):
    """The protocol alone: the kernel's buffers take more than a request's answer."""
    ended = []

    class Base:
        def __init__(self):
            self.loop, self.cycle = self, type("Cycle", (), {"response_complete": False})()
            self.transport, self.flow = self, type("Flow", (), {"write_paused": False})()

        def call_later(self, seconds, function):
            timer = threading.Timer(seconds, function)
            timer.start()
            return timer

        def abort(self):
            ended.append(time.monotonic())

        def pause_writing(self):
            self.flow.write_paused = True

        def resume_writing(self):
            self.flow.write_paused = False

    connection = server._impatient(Base, 0.2)()
    connection.pause_writing()
    connection.resume_writing()
    time.sleep(0.3)
    assert not ended
    connection.pause_writing()
    time.sleep(0.4)
    assert len(ended) == 1


def test_another_host_is_warned_about(folder):
    child = subprocess.Popen([sys.executable, "-m", "harmaug", "serve", "--model", str(folder), "--port", "0", "--host", "0.0.0.0"], stderr=subprocess.PIPE, text=True)
    lines = [child.stderr.readline() for _ in range(2)]
    child.terminate()
    child.communicate()
    assert "listening on 0.0.0.0, beyond this machine" in lines[0] and "no authentication" in lines[0] and lines[1].startswith("listening on http://0.0.0.0:")


def test_a_port_that_is_taken(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run([sys.executable, "-m", "harmaug", "serve", "--model", str(folder), "--port", str(taken.getsockname()[1])], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("harmaug: ") and os.strerror(errno.EADDRINUSE) in done.stderr and "Traceback" not in done.stderr


def test_without_the_extra(monkeypatch, guard):
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(ImportError, match=r"pip install 'harmaug\[serve\]'"):
        server.create_app(guard)


def test_whatever_scores_can_be_served(guard):
    class Plain:
        threshold = 0.25

        def score(self, prompts, responses):
            return [len(prompt) / 10 for prompt in prompts]

    with TestClient(server.create_app(Plain())) as client:
        assert client.post("/score", json={"rows": [{"prompt": "a"}, {"prompt": "abc"}]}).json() == {"rows": [{"score": 0.1, "flagged": False}, {"score": 0.3, "flagged": True}]}
        assert client.post("/v1/moderations", json={"input": "abc"}).json()["results"][0]["flagged"] is True


def test_scores_are_bits_of_the_guard(client, guard):
    got = client.post("/score", json={"rows": [{"prompt": p} for p in PROMPTS]}).json()["rows"]
    np.testing.assert_array_equal(np.array([r["score"] for r in got], dtype=np.float32), guard.score(PROMPTS))
