"""Other models as scorers, our metrics in other shapes, and the TF-IDF baseline."""
import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest
from fake_server import serving
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from harmaug import evaluate
from harmaug.data import DataError, Row, write_rows
from harmaug.endpoint import Endpoint, EndpointConfig, EndpointError
from harmaug.integrations import scorers
from harmaug.integrations.metrics import Metrics, compute_metrics
from harmaug.integrations.scorers import ModerationEndpoint, PipelineScorer
from harmaug.integrations.sklearn import TfidfGuard
from harmaug.teacher import as_scorer, as_teacher

ROWS = [Row(prompt=f"{'steal' if i % 2 else 'bake'} {('bread', 'a car', 'some tea')[i % 3]} {i}", response="Sure" if i % 4 == 0 else None, label=i % 2) for i in range(40)]


def fake_pipeline(rows, top_k, truncation):
    assert top_k is None and truncation
    return [[{"label": "SAFE", "score": 0.75 if "text_pair" in row else 0.5}, {"label": "Unsafe", "score": 0.25 if "text_pair" in row else 0.5}] for row in rows]


def test_pipelines():
    assert PipelineScorer(fake_pipeline).score(["a", "b"], ["c", None]).tolist() == [0.25, 0.5]
    assert PipelineScorer(fake_pipeline, "safe").score(["a"]).tolist() == [0.5] and PipelineScorer(fake_pipeline).score([]).shape == (0,)
    with pytest.raises(ValueError, match="labels are safe, unsafe: say which"):
        PipelineScorer(fake_pipeline, "bad").score(["a"])


class SizedPipeline:
    """A pipeline whose model has 50 positions, those of RoBERTa 2 fewer; `limit` is its tokenizer's."""

    def __init__(self, limit, padding=None):
        self.tokenizer = SimpleNamespace(model_max_length=limit)
        parts = [("", object()), ("roberta.embeddings.position_embeddings", SimpleNamespace(padding_idx=padding))]
        self.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=50), named_modules=lambda: iter(parts))

    def __call__(self, rows, top_k, **cut):
        self.cut = cut
        return fake_pipeline(rows, top_k, cut["truncation"])


@pytest.mark.parametrize(("limit", "padding", "longest"), [(40, None, None), (int(1e30), None, 50), (int(1e30), 1, 48)])
def test_pipelines_cut_at_what_their_model_can_read(limit, padding, longest):
    pipeline = SizedPipeline(limit, padding)
    PipelineScorer(pipeline).score(["a"])
    assert pipeline.cut == {"truncation": True} | ({} if longest is None else {"max_length": longest})


def test_whatever_gives_scores_is_compared(tmp_path, quick):
    """A guard, a pipeline, an endpoint, a function, a file of scores: in evaluate_guard, and as a teacher."""
    class TextClassificationPipeline:
        __call__ = staticmethod(fake_pipeline)

    TextClassificationPipeline.__module__ = "transformers.pipelines.text_classification"
    TfidfGuard.fit(ROWS).save_pretrained(tmp_path / "guard")
    write_rows(tmp_path / "scores.jsonl", ({"prompt": row.prompt, "response": row.response, "unsafe-score": row.label} for row in ROWS))
    with serving(results) as server:
        for scorer, name in ((TfidfGuard.fit(ROWS), "TfidfGuard"), (TextClassificationPipeline(), "TextClassificationPipeline"), (server.url, server.url),
                             (lambda prompts, responses: [len(prompt) / 100 for prompt in prompts], "<lambda>"), (tmp_path / "scores.jsonl", "scores.jsonl"),
                             (tmp_path / "guard", "guard")):
            found = evaluate.evaluate_guard(scorer, {"mine": ROWS}, draws=0)["datasets"]["mine"]
            assert found["n"] == 40 and as_teacher(scorer).name == name
            assert found["auprc"] == pytest.approx(1) or name not in ("scores.jsonl", "guard", "TfidfGuard")
    assert isinstance(as_scorer(tmp_path / "guard"), TfidfGuard)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(Endpoint, "_pause", lambda self, seconds: asyncio.sleep(0))


def moderation(server, **options):
    return ModerationEndpoint(EndpointConfig(**{"url": server.url, "model": "m", "concurrency": 1, "retries": 2, **options}), batch_size=2)


def results(path, payload):
    return 200, {"results": [{"category_scores": {"a": len(text) / 100, "b": 0, "c": None}} for text in payload["input"]]}, {}


def test_moderation_endpoint(monkeypatch, quick):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with serving(results) as server:
        np.testing.assert_allclose(moderation(server).score(["a", "bb", "c"], ["dd", None, None]), [0.05, 0.02, 0.01], rtol=1e-6)
        (path, first, headers), (_, second, _) = server.seen
        assert (path, headers["Authorization"]) == ("/v1/moderations", "Bearer k")
        assert [first, second] == [{"model": "m", "input": ["a\n\ndd", "bb"]}, {"model": "m", "input": ["c"]}]
        assert evaluate.evaluate_guard(moderation(server, model=""), {"mine": ROWS}, draws=0)["datasets"]["mine"]["n"] == 40
        assert "model" not in server.seen[-1][1]
        server.seen.clear()
        server.answer = lambda *a: (429, {}, {}) if len(server.seen) < 3 else results(*a)
        assert moderation(server).score(["abc"]).tolist() == [np.float32(0.03)] and len(server.seen) == 3


@pytest.mark.parametrize("status, body, message, tries", [
    (401, {}, "status 401", 1), (503, {}, "status 503", 3), (200, b"x", "no JSON object", 3),
    (200, {"results": []}, "not one result for each of 1", 1), (200, {"results": [{"flagged": True}]}, "without category_scores", 1),
    (200, {"results": [{"category_scores": {}}]}, "without category_scores", 1),
    (200, b'{"results": [{"category_scores": {"a": 0.2, "b": NaN}}]}', r"a category score must be in \[0, 1\], got nan", 1),
    (200, {"results": [{"category_scores": {"a": 0.2, "b": -7}}]}, r"a category score must be in \[0, 1\], got -7", 1),
])
def test_endpoints_that_fail_are_named(status, body, message, tries, quick):
    with serving(lambda *_: (status, body, {})) as server:
        with pytest.raises(EndpointError, match=message) as error:
            moderation(server).score(["secret"])
        assert len(server.seen) == tries and server.url in str(error.value) and "secret" not in str(error.value)


def test_an_endpoint_that_is_not_there(quick):
    with serving(results) as server:
        pass
    with pytest.raises(EndpointError, match="ConnectError"):
        moderation(server).score(["a"])


def test_scorers_take_rows_as_a_guard_does(quick):
    with serving(results) as server:
        for scorer in (PipelineScorer(fake_pipeline), moderation(server), TfidfGuard.fit(ROWS)):
            assert scorer.score("abc").shape == (1,) and scorer.score(text for text in ("a", "b")).shape == (2,)
            with pytest.raises(ValueError, match="2 prompts but 1 responses"):
                scorer.score(["a", "b"], ["x"])


def test_guardbench_conversations():
    class Guard:
        def score(self, prompts, responses=None):
            return np.array([len(p) + 10 * len(r or "") for p, r in zip(prompts, responses)], np.float32)

    chats = [[{"role": "user", "content": "abc"}], [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bb"}]]
    assert scorers.as_moderate(Guard())(conversations=chats, device="cpu") == [3.0, 21.0]


def test_metrics_in_other_shapes():
    module = Metrics(threshold=0.25)
    module.add(prediction=0.3, reference=1)
    module.add_batch(predictions=[0.1, 0.2], references=[0, 1])
    assert module.compute(predictions=[0.9], references=[0]) == evaluate.metrics([1, 0, 1, 0], [0.3, 0.1, 0.2, 0.9], 0.25)
    assert module.compute(predictions=[0.9], references=[1], threshold=0.95)["tp"] == 0
    module.add(prediction=0.3, reference=1)
    assert module.compute(predictions=None, references=None)["n"] == 1
    logits = np.array([[2.0, -1.0], [0.0, 3.0], [5.0, 1.0]])
    found = compute_metrics((logits, np.array([0, 1, 1])))
    p = np.exp(logits[:, 1]) / np.exp(logits).sum(1)
    assert found["brier"] == pytest.approx(np.mean((p - [0, 1, 1]) ** 2)) and "precision" in found
    assert "precision" not in compute_metrics((logits[:1], [0]))
    with pytest.raises(ValueError, match="two logits a row"):
        compute_metrics((logits[:, :1], [0, 1, 1]))


def test_tfidf_is_scikit_learns_and_a_folder_of_numbers(tmp_path):
    guard = TfidfGuard.fit(ROWS)
    texts = [f"{row.prompt}\n{row.response}" if row.response else row.prompt for row in ROWS]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(max_iter=1000, class_weight="balanced", random_state=0).fit(vectorizer.fit_transform(texts), [row.label for row in ROWS])
    scores = guard.score([row.prompt for row in ROWS], [row.response for row in ROWS])
    np.testing.assert_allclose(scores, model.predict_proba(vectorizer.transform(texts))[:, 1], rtol=1e-6)
    guard.save_pretrained(tmp_path / "guard")
    np.testing.assert_array_equal(TfidfGuard.from_pretrained(tmp_path / "guard").score([row.prompt for row in ROWS], [row.response for row in ROWS]), scores)
    np.testing.assert_array_equal(as_teacher(tmp_path / "guard").score(["steal bread"]), guard.score(["steal bread"]))
    for rows, message in ((ROWS[1::2], "one class only, every row is unsafe"), ([Row(prompt="a")], "row 1: neither a label"),
                          ([Row(prompt="a", label=0), Row(prompt="?", label=1)], "TF-IDF's rows: none of the 2 holds a word")):
        with pytest.raises(DataError, match=message):
            TfidfGuard.fit(rows)
    assert guard.score([]).shape == (0,) and guard.score(["words never seen"]).shape == (1,)
    whole = json.loads((tmp_path / "guard" / "tfidf.json").read_text())
    for broken in ({**whole, "idf": whole["idf"][1:]}, {**whole, "terms": None}, {}, {**whole, "coef": ["x"] * len(whole["coef"])}, {**whole, "terms": whole["terms"][:1] * len(whole["terms"])}):
        (tmp_path / "guard" / "tfidf.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="tfidf.json: damaged"):
            TfidfGuard.from_pretrained(tmp_path / "guard")
