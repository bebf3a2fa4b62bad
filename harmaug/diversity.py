"""How different a set's texts are: distinct n-grams, self-BLEU, clusters, nearest neighbours."""
from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmaug.data import normalise


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = normalise(text).split()
    return [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct word n-grams over all of them (Li et al. 2016, arXiv 1510.03055), in (0, 1]; None without any."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[str], *, sample: int = 200, order: int = 4, seed: int = 0) -> float | None:
    """Mean BLEU of each text against the others (Zhu et al. 2018, arXiv 1802.01886), in [0, 1]: lower is more diverse.

    Parameters
    ----------
    texts : sequence of str
    sample : int, default 200
        Texts that are drawn, when there are more.
    order : int, default 4
        Longest n-gram. Counts are smoothed as NLTK's method 1 does: a precision of 0 counts as 0.1 matches.
    seed : int, default 0

    Returns
    -------
    float or None
        None for fewer than two texts with words.
    """
    chosen = [text for text in texts if text.split()]
    if len(chosen) > sample:
        chosen = random.Random(seed).sample(chosen, sample)     # noqa: S311
    if len(chosen) < 2:
        return None
    counts = [[Counter(_grams(text, n)) for n in range(1, order + 1)] for text in chosen]
    lengths = [len(normalise(text).split()) for text in chosen]
    # for each gram the two highest counts in any text: a text is held against the highest of the others
    highest: list[dict[tuple[str, ...], list[tuple[int, int]]]] = [{} for _ in range(order)]
    for i, own in enumerate(counts):
        for n in range(order):
            for gram, count in own[n].items():
                best = highest[n].setdefault(gram, [])
                best.append((count, i))
                best.sort(reverse=True)
                del best[2:]
    return float(np.mean([_bleu(i, counts[i], lengths, highest) for i in range(len(chosen))]))


def _bleu(i: int, own: Sequence[Counter[tuple[str, ...]]], lengths: Sequence[int],
          highest: Sequence[dict[tuple[str, ...], list[tuple[int, int]]]]) -> float:
    logs = 0.0
    for n, grams in enumerate(own):
        total = max(sum(grams.values()), 1)
        matched = sum(min(count, next((c for c, j in highest[n][gram] if j != i), 0)) for gram, count in grams.items())
        logs += math.log((matched or 0.1) / total) / len(own)
        if n == 0 and matched == 0:
            return 0.0
    length = lengths[i]
    closest = min((other for j, other in enumerate(lengths) if j != i), key=lambda other: (abs(other - length), other))
    return min(1.0, math.exp(1 - closest / length)) * math.exp(logs)


def cluster(embeddings: ArrayLike, *, eps: float = 0.25, min_samples: int = 5) -> NDArray[np.int64]:
    """Return the DBSCAN cluster of each row by cosine distance, -1 for noise, as the paper counts diversity.

    Needs scikit-learn (the ``sklearn`` extra).
    """
    from sklearn.cluster import DBSCAN

    vectors = np.asarray(embeddings, dtype=np.float64)
    return np.asarray(DBSCAN(eps=eps, min_samples=min_samples, metric="cosine").fit_predict(vectors), dtype=np.int64)


def nearest(texts: Sequence[str], others: Sequence[str]) -> NDArray[np.float64]:
    """Return each text's highest character 5-gram Jaccard similarity to another set, shape (len(texts),); 0 if it is empty."""
    from harmaug.filters import NearIndex

    index = NearIndex(1e-9)
    for i, other in enumerate(others):
        index.add(other, str(i))
    found = [index.find(text) for text in texts]
    return np.array([0.0 if hit is None else hit[1] for hit in found])


def summary(texts: Sequence[str], seeds: Sequence[str], held_out: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """Return the account of a kept set's diversity, as run.json holds it.

    distinct_1, distinct_2, self_bleu (on 200), and the mean similarity to the nearest seed and held-out row (on 500).
    """
    some = list(texts) if len(texts) <= 500 else random.Random(seed).sample(list(texts), 500)    # noqa: S311

    def mean_to(others: Sequence[str]) -> float | None:
        return round(float(nearest(some, others).mean()), 4) if some and others else None

    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return {"distinct_1": rounded(distinct(texts, 1)), "distinct_2": rounded(distinct(texts, 2)),
            "self_bleu": rounded(self_bleu(texts, seed=seed)), "nearest_seed": mean_to(seeds),
            "nearest_held_out": mean_to(held_out)}
