"""Guard as its users call it: streams, tables, threads, Ctrl-C, explanations, scikit-learn."""
import html
import itertools
import re
import signal
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.base import is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import get_scorer
from test_guard import PROMPTS, RESPONSES, WORDS, write

from harmaug import inputs
from harmaug.guard import Guard


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("use") / "guard")


@pytest.fixture(scope="module")
def guard(folder):
    return Guard.from_pretrained(folder)


# -- streams --

class Text(str):
    __slots__ = ("__weakref__",)


def test_generators_are_scored_in_order_and_not_held(guard):
    alive = weakref.WeakSet()
    most = 0

    def texts(n):
        nonlocal most
        for i in range(n):
            text = Text("ab c"[i % 4] * (i % 30))
            alive.add(text)
            most = max(most, len(alive))
            yield text
            del text

    want = guard.score(["ab c"[i % 4] * (i % 30) for i in range(2000)])
    assert list(guard.score_iter(texts(2000))) == want.tolist() and most <= 600
    most = 0
    np.testing.assert_array_equal(guard.score(texts(2000)), want)
    assert most <= 600
    assert list(guard.score_iter((t for t in PROMPTS), iter(RESPONSES), block_rows=2)) == guard.score(PROMPTS, RESPONSES).tolist()
    endless = guard.score_iter(itertools.cycle(PROMPTS), block_rows=3)
    assert list(itertools.islice(endless, 7)) == guard.score([*PROMPTS, *PROMPTS[:2]]).tolist()
    assert list(guard.score_iter([])) == [] and list(guard.score_iter("a")) == guard.score("a").tolist()


def test_errors_of_a_stream_name_the_row(guard):
    scores = guard.score_iter(iter(["a", "b", 3]), block_rows=1)
    assert [next(scores), next(scores)] == guard.score(["a", "b"]).tolist()
    with pytest.raises(TypeError, match="row 2: the prompt must be a str"):
        next(scores)
    for prompts, responses, which in ((["a", "b"], ["c"], "responses"), (["a"], ["b", "c"], "prompts")):
        with pytest.raises(ValueError, match=f"row 1: the {which} end here, the others do not"):
            guard.score(iter(prompts), iter(responses))
        with pytest.raises(ValueError, match="prompts but . responses"):
            guard.score_iter(prompts, responses)
    with pytest.raises(ValueError, match="block_rows must be >= 1, got 0"):
        guard.score_iter([], block_rows=0)
    with pytest.raises(ValueError, match="long must be one of"):
        guard.score_iter([], long="cut")


# -- kinds of rows --

class Frame:
    """What a data frame of any library is to us: columns by name; iterating gives the names."""

    def __init__(self, **data):
        self.data = data
        self.columns = list(data)

    def __getitem__(self, name):
        return self.data[name]

    def __iter__(self):
        return iter(self.data)


class NAType:
    pass


def test_tables_are_read_by_column(guard):
    want = guard.score(PROMPTS, RESPONSES)
    table = Frame(id=range(5), prompt=np.array(PROMPTS, dtype=object), response=np.array([NAType(), "d e f", np.nan, "no", RESPONSES[4]], dtype=object))
    np.testing.assert_array_equal(guard.score(table), want)
    np.testing.assert_array_equal(guard.score(Frame(prompt=PROMPTS)), guard.score(PROMPTS))
    np.testing.assert_array_equal(guard.score(Frame(prompt=PROMPTS), RESPONSES), want)
    with pytest.raises(ValueError, match=r"needs a column prompt, got \['text'\]"):
        guard.score(Frame(text=PROMPTS))
    with pytest.raises(ValueError, match="beside a table with a column response"):
        guard.score(table, RESPONSES)
    with pytest.raises(TypeError, match="row 0: the prompt must be a str .* got ndarray"):
        guard.score(np.array([["a"], ["b"]]))


def test_content_in_parts(guard):
    def say(role, *texts):
        return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}

    chat = [say("user", "a", "b"), say("assistant", "c")]
    np.testing.assert_array_equal(guard.score([chat, chat[:1]]), guard.score(["a\nb", "a\nb"], ["c", None]))
    for content, match in (([{"type": "image_url"}], "row 1: only text can be judged, got content of type image_url"), ([{"type": "text"}], "row 1: content of type text needs a text"),
                           (["a"], "row 1: a message needs"), (None, "row 1: a message needs")):
        with pytest.raises(TypeError, match=match):
            guard.score([chat, [{"role": "user", "content": content}]])
    assert list(inputs.rows_of([chat])) == [("a\nb", "c")]


def test_pandas_and_polars_where_they_are(guard):
    """Neither is a dependency: what they give is what the tests above imitate."""
    want = guard.score(PROMPTS, RESPONSES)
    for name in ("pandas", "polars"):
        try:
            library = __import__(name)
        except ImportError:
            continue
        frame = library.DataFrame({"prompt": PROMPTS, "response": RESPONSES})
        for got in (guard.score(frame), guard.score(frame["prompt"], frame["response"])):
            assert type(got) is np.ndarray
            np.testing.assert_array_equal(got, want)
        if name == "pandas":
            nullable = frame.astype("string").iloc[::-1]
            np.testing.assert_array_equal(guard.score(nullable), want[::-1])


# -- scikit-learn --

def test_scikit_learn_takes_it_for_a_fitted_classifier(guard):
    prompts = [word * n for word in "abcdefgh" for n in range(1, 11)]
    scores = guard.score(prompts)
    labels = (scores + np.random.default_rng(0).normal(0, 0.02, 80) > np.median(scores)).astype(int)
    assert guard.classes_.tolist() == [0, 1] and is_classifier(guard)
    assert get_scorer("roc_auc")(guard, prompts, labels) > 0.8
    guard.set_threshold(float(np.median(scores)))
    assert get_scorer("accuracy")(guard, prompts, labels) == (guard.predict(prompts) == labels).mean()
    for rows in (prompts, np.array(prompts, dtype=object), Frame(prompt=prompts)["prompt"]):
        calibrated = CalibratedClassifierCV(FrozenEstimator(guard), method="sigmoid").fit(rows, labels)
        got = calibrated.predict_proba(rows)
        assert got.shape == (80, 2) and (np.argsort(got[:, 1]) == np.argsort(scores)).mean() > 0.9
    with pytest.raises(TypeError, match="trained already; harmaug.Distiller trains one"):
        guard.fit(prompts, labels)


# -- threads, Ctrl-C --

def test_one_guard_in_many_threads(guard):
    rng = np.random.default_rng(3)
    prompts = ["".join(rng.choice(list("abc ,?"), n)) for n in rng.integers(0, 90, 400)]
    want = guard.score(prompts)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: guard.score(prompts[i:i + 50]) if i % 3 else guard.score(prompts)[i:i + 50], [*range(0, 400, 50)] * 4))
    np.testing.assert_array_equal(np.concatenate(parts), np.tile(want, 4))


def test_ctrl_c_ends_a_long_score(folder):
    code = ("import sys, itertools\nfrom harmaug import Guard\nguard = Guard.from_pretrained(sys.argv[1])\nprint('go', flush=True)\n"
            "try:\n    guard.score(itertools.repeat('a b c ' * 10))\nexcept KeyboardInterrupt:\n    print(guard.score('a').shape)\n    sys.exit(7)")
    child = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "go\n"
    time.sleep(0.3)
    begun = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.communicate()[0] == "(1,)\n" and child.returncode == 7
    assert time.monotonic() - begun < 5


def test_calls_are_short_whatever_the_model(guard, tmp_path):
    assert guard.core.call_tokens == 16384
    for layers, hidden, want in ((1, 510, 16019), (2, 600, 5787)):
        wide = Guard.from_pretrained(write(tmp_path / str(hidden), num_hidden_layers=layers, hidden_size=hidden))
        assert wide.core.call_tokens == want


# -- explanations --

def log_odds(guard, prompt, response=None):
    logits = guard.logits([prompt], [response])[0].astype(np.float64)
    return logits[1] - logits[0]


def test_contributions_are_differences_of_the_logit(guard):
    prompt, response = "a hello, you", "b c."
    given = guard.explain(prompt, response)
    whole = log_odds(guard, prompt, response)
    assert given.score == pytest.approx(guard.score(prompt, response)[0]) and given.logit == pytest.approx(whole) and given.replaced_by == "[MASK]"
    assert [(prompt, response)[side][b:e] for side, (b, e) in zip(given.in_response.astype(int), given.spans, strict=True)] == given.tokens
    assert "".join(given.tokens) == (prompt + response).replace(" ", "") and given.in_response.sum() == 3
    plain = guard.tokenizer.encode_batch([prompt], [response])
    at = np.flatnonzero(plain.spans[:, 1] > 0)
    for i, place in enumerate(at):
        ids = plain.ids.copy()
        ids[place] = WORDS.index("[MASK]")
        logits = guard.encoder.logits(ids, plain.offsets, plain.type_ids)[0].astype(np.float64)
        assert given.contributions[i] == pytest.approx(whole - (logits[1] - logits[0]), abs=1e-6)
    single = guard.explain("a. b")
    assert single.response is None and single.tokens == ["a", ".", "b"]
    assert guard.explain([{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]).tokens == given.tokens
    assert guard.explain("").tokens == [] and guard.explain("", "").contributions.shape == (0,)


def test_tokens_are_left_out_without_a_mask_token(tmp_path, monkeypatch):
    monkeypatch.setattr("harmaug.explain._mask_token", lambda guard: None)
    guard = Guard.from_pretrained(write(tmp_path / "guard", id2label={"0": "unsafe"}))
    given = guard.explain("a b c")
    want = [guard.logits("a b c")[0, 0] - guard.logits(rest)[0, 0] for rest in ("b c", "a c", "a b")]
    np.testing.assert_allclose(given.contributions, want, rtol=0, atol=1e-6)
    assert given.replaced_by is None and "left out" in given._repr_html_()


def test_explanations_show_text_on_a_click_only(guard):
    given = guard.explain("a <b> &amp; hello  there\n😀", "<script>")
    assert repr(given) == f"<explanation of {len(given.tokens)} tokens, P(unsafe) {given.score:.3f}, text hidden>"
    page = given._repr_html_()
    before, _, rest = page.partition("</summary>")
    shown, _, after = rest.partition("</details>")
    assert "hello" not in before + after and "no proof of a cause" in after and "<script" not in page and "<details open" not in page
    spans = [part.split(">", 1) for part in shown.split("<span ")[1:]]
    assert len(spans) == len(given.tokens) and all('style="background: rgba(' in head and 'title="' in head for head, _ in spans)
    texts = re.findall(r"<div[^>]*>(.*?)</div>", shown, re.DOTALL)
    assert [html.unescape(re.sub(r"<[^>]*>", "", text)) for text in texts] == [given.prompt, given.response]


def test_explain_rejects(guard):
    with pytest.raises(ValueError, match="the row has 42 tokens, explain reads at most 40: explain a part of it"):
        guard.explain("a " * 40)
    with pytest.raises(ValueError, match="method must be one of occlusion, got 'shap'"):
        guard.explain("a", method="shap")
    with pytest.raises(TypeError, match="row 0: the prompt must be a str"):
        guard.explain(3)
