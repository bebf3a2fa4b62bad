"""harmaug's metrics in the shapes of Hugging Face: ``evaluate``'s modules, and a Trainer's ``compute_metrics``."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from harmaug import evaluate

__all__ = ["Metrics", "compute_metrics"]


class Metrics:
    """What ``evaluate.load(...)`` returns, for P(unsafe): `add`, `add_batch`, `compute`.

    Examples
    --------
    >>> Metrics().compute(predictions=[0.1, 0.9], references=[0, 1])["f1"]
    1.0
    """

    name = "harmaug"

    def __init__(self, **options: Any) -> None:
        self._options, self._predictions, self._references = options, [], []     # type: ignore[var-annotated]

    def add(self, *, prediction: float, reference: int) -> None:
        """Add one row."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Iterable[float], references: Iterable[int]) -> None:
        """Add rows."""
        self._predictions.extend(predictions)
        self._references.extend(references)

    def compute(self, *, predictions: Iterable[float] | None = None, references: Iterable[int] | None = None,
                **options: Any) -> dict[str, Any]:
        """Return `evaluate.metrics` of all rows that were added, and forget them; options are its options."""
        self.add_batch(predictions=() if predictions is None else predictions,
                       references=() if references is None else references)
        given, self._predictions, self._references = (self._references, self._predictions), [], []
        return evaluate.metrics(*given, **{**self._options, **options})


def compute_metrics(evaluated: Any) -> dict[str, float]:
    """Return the metrics of a transformers EvalPrediction whose two logits are safe and unsafe; those that are None are
    left out, as a Trainer wants numbers."""
    given, labels = (evaluated.predictions, evaluated.label_ids) if hasattr(evaluated, "predictions") else evaluated
    logits = np.asarray(given[0] if isinstance(given, tuple) else given, dtype=np.float64)    # of a tuple, what stands first
    labels = np.asarray(labels, dtype=np.float64)
    if logits.ndim != 2 or logits.shape[1] != 2:
        raise ValueError(f"predictions must be two logits a row, got shape {logits.shape}")
    scores = 1 / (1 + np.exp(np.clip(logits[:, 0] - logits[:, 1], -700, 700)))
    found = evaluate.metrics(labels, scores)
    return {name: found[name] for name in evaluate.METRICS if found[name] is not None}
