"""A finding reader without weights that sees the same findings in every picture."""

import torch

from medim.data.domain import labels_of
from medim.data.phantom_cxr import DOMAIN
from medim.metrics.finding_reader import FindingReader, ReaderConfig


def certain_reader(*seen: str) -> FindingReader:
    """Sees `seen` as present and nothing else; knows the domain phantom_cxr, works at 32 pixels."""
    labels = labels_of(DOMAIN["phantom_cxr"].findings)
    reader = FindingReader(ReaderConfig({"phantom_cxr": labels}, 2, 32)).eval()
    with torch.no_grad():
        for parameter in reader.parameters():
            parameter.zero_()
        for number, label in enumerate(labels):
            reader.peak_heads[0].bias[number, 2 if label in seen else 0] = 10
    return reader
