"""Prints the processor time per pair of every drawn domain (picture, report, masks, PNG), one thread.

python -m benchmarks.bench_phantoms [size ...]
"""

from __future__ import annotations

import sys
import time
from itertools import islice

from medim.data import DOMAINS, get_domain
from medim.data.domain import Domain

COUNT, ROUNDS = 200, 3


def milliseconds_per_pair(domain: Domain, size: int, count: int = COUNT) -> float:
    """The fastest of ROUNDS rounds of `count` pairs; grids and banks are made before the clock starts."""

    def stream(first: int) -> None:
        pairs = (pair for i in range(count) for pair in domain.pairs(0, first + i, size))
        for _ in islice(pairs, count):
            pass

    next(iter(domain.pairs(0, 0, size)))
    times = []
    for turn in range(ROUNDS):
        start = time.process_time()
        stream(turn * count)
        times.append(time.process_time() - start)
    return min(times) / count * 1e3


def main() -> None:
    """One line per domain and size."""
    for size in [int(text) for text in sys.argv[1:]] or [64]:
        for name in DOMAINS:
            print(
                f"{name:20} {size:4} px  {milliseconds_per_pair(get_domain(name), size):7.2f} ms per pair", flush=True
            )


if __name__ == "__main__":
    main()
