"""Lazy registry of domains: only the file asked for is imported."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medim.data.domain import Domain

DOMAINS = {  # dataset -> module that defines its DOMAIN (a mapping by dataset name)
    "phantom_cxr": "medim.data.phantom_cxr",
    "phantom_cxr_ood": "medim.data.phantom_cxr",
    "phantom_pathology": "medim.data.phantom_pathology",
    "drawings": "medim.data.drawings",
    "marks": "medim.data.marks",
}


def is_drawn(dataset: str) -> bool:
    """Whether a dataset is drawn by us (and so has scenes, findings and a grammar)."""
    return dataset in DOMAINS


def get_domain(dataset: str) -> Domain:
    """The domain of a drawn dataset.

    Raises:
        KeyError: no such domain.
    """
    if dataset not in DOMAINS:
        raise KeyError(f"no drawn domain {dataset!r} in medim/data; there are {', '.join(DOMAINS)}")
    domain: Domain = import_module(DOMAINS[dataset]).DOMAIN[dataset]
    return domain
