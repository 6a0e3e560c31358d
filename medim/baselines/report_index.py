"""Which training report is most similar to another: cosine of TF-IDF over words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


class ReportIndex:
    """TF-IDF rows of unit length over the words of the training reports."""

    def __init__(self, reports: Sequence[str]) -> None:
        words = [Counter(_words(report)) for report in reports]
        frequency = Counter(word for counts in words for word in counts)
        self.column = {word: number for number, word in enumerate(sorted(frequency))}
        self.idf = np.log((1 + len(reports)) / (1 + np.array([frequency[w] for w in sorted(frequency)]))) + 1
        self.rows = self._matrix(words)

    def _matrix(self, words: Sequence[Counter[str]]) -> sparse.csr_matrix:
        cells = [
            (r, self.column[w], n) for r, counts in enumerate(words) for w, n in counts.items() if w in self.column
        ]
        row, column, count = zip(*cells, strict=True) if cells else ((), (), ())
        values = np.asarray(count, float) * self.idf[list(column)] if cells else np.zeros(0)
        matrix = sparse.csr_matrix((values, (row, column)), shape=(len(words), len(self.column)))
        norms = np.sqrt(matrix.multiply(matrix).sum(axis=1))
        return sparse.csr_matrix(matrix.multiply(1 / np.maximum(norms, 1e-12)))

    def nearest(self, reports: Sequence[str]) -> NDArray[np.int64]:
        """Index of the most similar training report for each."""
        queries = self._matrix([Counter(_words(report)) for report in reports])
        return np.asarray((queries @ self.rows.T).toarray().argmax(axis=1), dtype=np.int64)

    def neighbours(self, index: int, number: int) -> list[int]:
        """The `number` reports most similar to one of the index's own, without itself; of equal ones the first."""
        cosines = np.asarray((self.rows[[index]] @ self.rows.T).toarray()).ravel()
        cosines[index] = -1.0
        order = np.argsort(-cosines, kind="stable")
        return [int(found) for found in order[: min(number, len(cosines) - 1)]]

    def central(self) -> int:
        """The training report with the highest mean similarity to all."""
        mean = np.asarray(self.rows.mean(axis=0)).ravel()
        return int(np.argmax(self.rows @ mean))


def _words(report: str) -> list[str]:
    return re.findall(r"\w+", report.lower())
