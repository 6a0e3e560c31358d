"""The same seed and threads give the same numbers."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.resources import THREAD_VARIABLES, configure

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment():
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_seed_and_threads(environment):
    import torch

    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    try:
        draws = []
        for _ in range(2):
            configure(1, 5)
            draws.append((random.random(), np.random.rand(), float(torch.rand(()))))  # noqa: NPY002
        assert draws[0] == draws[1]
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        assert {os.environ[name] for name in THREAD_VARIABLES} == {"1"}
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)


@pytest.mark.parametrize("module", ["stage", "code_hash", "tracking", "publish", "profile", "paths"])
def test_importing_the_plumbing_imports_no_heavy_package(module):
    heavy = "torch", "mlflow", "pandas", "transformers", "medim", "pydantic"
    code = f"import sys, pipeline.{module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
