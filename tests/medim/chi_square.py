"""Pearson's chi-square test, for samplers whose distribution is known."""

import torch


def p_value(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Of counts (n,) against the expected ones, with n - 1 degrees of freedom."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    half = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, statistic / 2))
