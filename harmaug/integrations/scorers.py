"""Other people's models where a guard is expected: transformers pipelines and moderation endpoints, as `evaluate.Scorer`."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmaug.endpoint import Endpoint, EndpointConfig, EndpointError
from harmaug.guard import UNSAFE_NAMES
from harmaug.inputs import rows_of
from harmaug.integrations.transformers import UNLIMITED

__all__ = ["ModerationEndpoint", "PipelineScorer", "as_moderate"]


class PipelineScorer:
    """A transformers text-classification pipeline; what is longer than its tokenizer's `model_max_length`, or has no place in the model, is cut.

    Parameters
    ----------
    pipeline : callable
        As ``transformers.pipeline("text-classification", model=...)`` returns.
    unsafe : str, optional
        The label whose score counts. None: the one that is named unsafe, harmful, toxic or malicious.
    """

    def __init__(self, pipeline: Any, unsafe: str | None = None) -> None:
        self._pipeline, self._unsafe = pipeline, unsafe
        longest = _positions(pipeline)
        self._cut: dict[str, Any] = {"truncation": True, **({} if longest is None else {"max_length": longest})}

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Return P(unsafe), shape (n,); a ValueError when no label, or several, can be told to mean unsafe."""
        rows = [{"text": prompt, "text_pair": answer} if answer else {"text": prompt}
                for prompt, answer in rows_of(prompts, responses)]
        scores = []
        for found in self._pipeline(rows, top_k=None, **self._cut) if rows else ():
            by_name = {entry["label"].lower(): entry["score"] for entry in found}
            wanted = [self._unsafe.lower()] if self._unsafe else [name for name in by_name if name in UNSAFE_NAMES]
            if len(wanted) != 1 or wanted[0] not in by_name:
                raise ValueError(f"the pipeline's labels are {', '.join(by_name)}: say which means unsafe (unsafe=...)")
            scores.append(by_name[wanted[0]])
        return np.array(scores, dtype=np.float32)


def _positions(pipeline: Any) -> int | None:
    """Return how many tokens the model of a pipeline has positions for, where its tokenizer sets no limit."""
    tokenizer, model = getattr(pipeline, "tokenizer", None), getattr(pipeline, "model", None)
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if model is None or not positions or getattr(tokenizer, "model_max_length", 0) < UNLIMITED:
        return None
    # RoBERTa and its kin count positions from behind the padding's
    paddings = [part.padding_idx for name, part in model.named_modules() if name.endswith("position_embeddings")]
    return int(positions) - max((padding + 1 for padding in paddings if padding is not None), default=0)


class ModerationEndpoint:
    """An OpenAI-compatible moderations endpoint; the score is the highest of its category scores.

    Prompt and response are sent as one text, an empty line between them.

    Parameters
    ----------
    endpoint : Endpoint or EndpointConfig
        Its `model` may be "": the server's own choice.
    batch_size : int, default 32
        Texts in one request.
    """

    def __init__(self, endpoint: Endpoint | EndpointConfig, *, batch_size: int = 32) -> None:
        self._endpoint = endpoint if isinstance(endpoint, Endpoint) else Endpoint(endpoint)
        self.name, self._batch_size = self._endpoint.config.url, batch_size

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Return the scores, shape (n,); an EndpointError names the endpoint when it does not answer as it should."""
        texts = [f"{prompt}\n\n{answer}" if answer else prompt for prompt, answer in rows_of(prompts, responses)]
        batches = [texts[first:first + self._batch_size] for first in range(0, len(texts), self._batch_size)]
        scores: list[float] = []
        for batch, answer in zip(batches, self._endpoint.map("moderations", ({"input": batch} for batch in batches))):
            results = answer.get("results")
            if not isinstance(results, list) or len(results) != len(batch):
                raise EndpointError(f"{self.name}: not one result for each of {len(batch)} texts")
            try:
                values = [[float(value) for value in result["category_scores"].values() if value is not None] for result in results]
                scores += map(max, values)
            except (KeyError, TypeError, ValueError, AttributeError):
                raise EndpointError(f"{self.name}: a result without category_scores") from None
            wrong = next((value for of_text in values for value in of_text if not 0 <= value <= 1), None)
            if wrong is not None:
                raise EndpointError(f"{self.name}: a category score must be in [0, 1], got {wrong:g}")
        return np.array(scores, dtype=np.float32)


def as_moderate(guard: Any) -> Any:
    """Return the callable that ``guardbench.benchmark(moderate=...)`` takes: conversations in, P(unsafe) of each out.

    `guard` is whatever `harmaug.evaluate.score_sets` takes.

    Examples
    --------
    >>> class Length:
    ...     def score(self, prompts, responses=None):
    ...         return [len(p) / 10 for p in prompts]
    >>> as_moderate(Length())(conversations=[[{"role": "user", "content": "hello"}]])
    [0.5]
    """
    from harmaug.teacher import as_array, as_scorer

    scorer = as_scorer(guard)

    def moderate(conversations: Sequence[Any], **_: Any) -> list[float]:
        rows = list(rows_of(conversations))
        scores = as_array(scorer.score([prompt for prompt, _ in rows], [answer for _, answer in rows]))
        if scores.shape != (len(rows),) or not np.isfinite(scores).all():
            raise ValueError(f"{type(scorer).__name__} must give a finite score for each of {len(rows)} conversations, got {scores!r}"[:200])
        return [float(score) for score in scores]

    return moderate
