"""How different a set's texts are: distinct n-grams, self-BLEU, clusters, nearest neighbours."""
from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmaug import _C, models
from harmaug.adapters import BEFORE_CLASSIFIER
from harmaug.data import normalise
from harmaug.tokenizer import Tokenizer

ENCODER = "minilm"      # a sentence encoder, as the paper takes one


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


def embed(texts: Sequence[str], encoder: str | os.PathLike[str] = ENCODER) -> NDArray[np.float32]:
    """Return what an encoder's head makes of each text before its classes, shape (n, hidden_size).

    The layer before the classes is the identity here, so for BERT it is the tanh of the first token's last hidden
    state, which tames its few huge components. Texts are cut to 128 tokens. A FileNotFoundError if there is no such
    model.
    """
    folder = models.resolve(encoder)
    size = _C.EncoderParams.read(folder, new_head=1).config["hidden_size"]
    params = _C.EncoderParams.read(folder, new_head=size)
    for name in params.names:
        if name.startswith("classifier.") or name.endswith(BEFORE_CLASSIFIER):
            params.set(name, np.eye(size) if len(params.shape(name)) == 2 else np.zeros(size))
            if name.endswith(BEFORE_CLASSIFIER) and (bias := name.removesuffix("weight") + "bias") in params.names:
                params.set(bias, np.zeros(size))
    limit = min(128, params.config["max_tokens"])
    rows = Tokenizer.from_pretrained(folder).encode_batch(list(texts), max_length=limit)
    return _C.Encoder.from_params(params).logits(rows.ids, rows.offsets, rows.type_ids)


def cluster(embeddings: ArrayLike, *, eps: float = 0.5, min_samples: int = 5) -> NDArray[np.int64]:
    """The DBSCAN cluster of each row by cosine distance, as the paper counts diversity.

    Parameters
    ----------
    embeddings : array_like, shape (n, hidden_size)
        As `embed` returns them.
    eps : float, default 0.5
        Largest distance of neighbours; the defaults are scikit-learn's, the paper does not tell its own.
    min_samples : int, default 5
        Rows within that distance, itself among them, that make a row a cluster's core.

    Returns
    -------
    ndarray, shape (n,), int64
        From 0; -1 for noise.

    Raises
    ------
    ImportError
        Without scikit-learn, naming the extra ``sklearn``.
    """
    try:
        from sklearn.cluster import DBSCAN
    except ImportError:
        raise ImportError("clusters need scikit-learn: pip install 'harmaug[sklearn]'") from None
    vectors = np.asarray(embeddings, dtype=np.float64)
    return np.asarray(DBSCAN(eps=eps, min_samples=min_samples, metric="cosine").fit_predict(vectors), dtype=np.int64)


def plane(embeddings: ArrayLike) -> tuple[NDArray[np.float64], list[float]]:
    """Return the first two principal components of unit-length rows, shape (n, 2), and their shares of the variance.

    A ValueError of fewer than two rows or columns, or a number that is not finite.
    """
    vectors = np.asarray(embeddings, dtype=np.float64)
    if vectors.ndim != 2 or min(vectors.shape) < 2 or not np.isfinite(vectors).all():
        raise ValueError(f"plane: embeddings must be finite numbers of at least two rows and columns, got shape {vectors.shape}")
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    vectors -= vectors.mean(0)
    _, sizes, axes = np.linalg.svd(vectors, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(1)])[:, None]     # an axis has no sign of its own
    return vectors @ axes.T, (sizes[:2] ** 2 / max(float((sizes ** 2).sum()), 1e-300)).tolist()


def clusters(texts: Sequence[str], encoder: str | os.PathLike[str] = ENCODER, *, sample: int = 5000,
             seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the account of the texts' clusters, and their map: x, y and cluster of each text that was looked at.

    Parameters
    ----------
    texts : sequence of str
    encoder : str or path, default "minilm"
        See `embed`.
    sample : int, default 5000
        Texts that are drawn, when there are more: the number of clusters depends on how many are looked at.
    seed : int, default 0

    Returns
    -------
    dict
        "clusters" and "noise", the share of texts in none; "clusters_of", the texts looked at, and "clusters_by", the
        encoder. "clusters" is None and "clusters_note" says why where the encoder or scikit-learn is missing.
    dict
        "x", "y", "cluster" and "share", the two axes' shares of the variance; empty where there is no such map.
    """
    some = list(texts) if len(texts) <= sample else random.Random(seed).sample(list(texts), sample)     # noqa: S311
    if len(some) < 3:
        return {"clusters": None, "clusters_note": "fewer than three texts"}, {}
    try:
        embeddings = embed(some, encoder)
        found = cluster(embeddings)
    except (FileNotFoundError, ImportError) as error:
        return {"clusters": None, "clusters_note": str(error)}, {}
    points, share = plane(embeddings)
    about = {"clusters": int(found.max()) + 1, "noise": round(float((found < 0).mean()), 4), "clusters_of": len(some),
             "clusters_by": os.fspath(encoder)}
    return about, {"x": points[:, 0].round(4).tolist(), "y": points[:, 1].round(4).tolist(), "cluster": found.tolist(),
                   "share": [round(value, 4) for value in share]}


def nearest(texts: Sequence[str], others: Sequence[str]) -> NDArray[np.float64]:
    """Return each text's highest character 5-gram Jaccard similarity to another set, shape (len(texts),); 0 if it is empty."""
    from harmaug.filters import NearIndex

    index = NearIndex(1e-9)
    for i, other in enumerate(others):
        index.add(other, str(i))
    found = [index.find(text) for text in texts]
    return np.array([0.0 if hit is None else hit[1] for hit in found])


def summary(texts: Sequence[str], seeds: Sequence[str], held_out: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """The account of a kept set's diversity, as run.json holds it.

    Parameters
    ----------
    texts, seeds, held_out : sequence of str
        The kept texts, and those that they are held against.
    seed : int, default 0
        Of the draws where there are more texts.

    Returns
    -------
    dict
        "distinct_1", "distinct_2", "self_bleu" (on 200 texts), and "nearest_seed" and "nearest_held_out", the mean of
        `nearest` (on 500); None where there is nothing to count.
    """
    some = list(texts) if len(texts) <= 500 else random.Random(seed).sample(list(texts), 500)    # noqa: S311

    def mean_to(others: Sequence[str]) -> float | None:
        return round(float(nearest(some, others).mean()), 4) if some and others else None

    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return {"distinct_1": rounded(distinct(texts, 1)), "distinct_2": rounded(distinct(texts, 2)),
            "self_bleu": rounded(self_bleu(texts, seed=seed)), "nearest_seed": mean_to(seeds),
            "nearest_held_out": mean_to(held_out)}
