"""The baseline that costs seconds: TF-IDF and logistic regression (scikit-learn), with the manners of a guard."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmaug.data import DataError, Row, read_object, require_labels, write_json
from harmaug.inputs import rows_of

__all__ = ["FILE", "TfidfGuard"]

FILE = "tfidf.json"
_SETTINGS: dict[str, Any] = {"ngram_range": (1, 2), "sublinear_tf": True}


class TfidfGuard:
    """Words and pairs of words, weighted by TF-IDF, under a logistic regression with balanced classes.

    Prompt and response are one text, a line between them. A folder of it holds numbers and words, nothing that runs.
    """

    threshold = 0.5

    def __init__(self, terms: Sequence[str], idf: NDArray[np.float64], coef: NDArray[np.float64], intercept: float) -> None:
        if not len(terms) == len(idf) == len(coef) or len(set(terms)) != len(terms):
            raise ValueError(f"{len(terms)} terms, {len(idf)} weights and {len(coef)} coefficients do not belong together")
        self._terms, self._coef, self._intercept = list(terms), coef, intercept
        self._vectorizer = _sklearn().TfidfVectorizer(vocabulary=self._terms, **_SETTINGS)
        self._vectorizer.idf_ = idf

    @classmethod
    def fit(cls, rows: Sequence[Row], *, seed: int = 0, where: str = "TF-IDF's rows") -> TfidfGuard:
        """Fit on rows with a hard label (see `Row.hard_label`), of both classes; errors call them `where`."""
        from sklearn.linear_model import LogisticRegression

        require_labels(rows, where)
        vectorizer = _sklearn().TfidfVectorizer(**_SETTINGS)
        try:
            features = vectorizer.fit_transform([_text(row.prompt, row.response) for row in rows])
        except ValueError:
            raise DataError(f"{where}: none of the {len(rows)} holds a word of two letters") from None
        model = LogisticRegression(max_iter=1000, class_weight="balanced", random_state=seed)
        model.fit(features, [row.hard_label for row in rows])
        return cls(vectorizer.get_feature_names_out().tolist(), vectorizer.idf_, model.coef_[0], float(model.intercept_[0]))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> TfidfGuard:
        """Open a folder that `save_pretrained` wrote."""
        path = Path(folder) / FILE
        found = read_object(path)
        try:
            idf, coef = (np.array(found[name], dtype=np.float64) for name in ("idf", "coef"))
            return cls([str(term) for term in found["terms"]], idf, coef, float(found["intercept"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: damaged: {error}") from None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / FILE, {"schema_version": 1, "terms": self._terms, "idf": self._vectorizer.idf_.tolist(),
                                         "coef": self._coef.tolist(), "intercept": self._intercept}, indent=0)

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Return P(unsafe), shape (n,)."""
        texts = [_text(prompt, answer) for prompt, answer in rows_of(prompts, responses)]
        if not texts:
            return np.zeros(0, dtype=np.float32)
        features = self._vectorizer.transform(texts)
        return np.asarray(np.exp(-np.logaddexp(0, -(features @ self._coef + self._intercept))), dtype=np.float32)


def _text(prompt: str, response: str | None) -> str:
    return f"{prompt}\n{response}" if response else prompt


def _sklearn() -> Any:
    try:
        from sklearn.feature_extraction import text
    except ImportError:
        raise ImportError("the TF-IDF baseline needs scikit-learn: pip install 'harmaug[sklearn]'") from None
    return text
