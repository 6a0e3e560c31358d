import numpy as np

from medim.baselines.report_index import ReportIndex

REPORTS = ["the heart is normal", "the lung is normal", "the lung has a nodule", "the heart is big", "a nodule"]


def cosines():
    """TF-IDF with smoothed idf and unit rows, written out."""
    words = sorted({word for report in REPORTS for word in report.split()})
    counts = np.array([[report.split().count(word) for word in words] for report in REPORTS], float)
    weights = counts * (np.log((1 + len(REPORTS)) / (1 + (counts > 0).sum(0))) + 1)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return weights @ weights.T


def test_neighbours_are_ranked_by_cosine_without_the_report_itself():
    index, expected = ReportIndex(REPORTS), cosines()
    for row in range(len(REPORTS)):
        others = sorted((other for other in range(len(REPORTS)) if other != row), key=lambda o: -expected[row, o])
        assert index.neighbours(row, 2) == others[:2]
        assert index.neighbours(row, 99) == others
