"""Threads, seeds, device and the life of a stage's process."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PR_SET_PDEATHSIG = 1
TELEMETRY_OFF = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1"}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def telemetry_off() -> None:
    """Tell MLflow, DVC and Prefect to report to nobody, unless the user has said otherwise."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)


def configure(threads: int, seed: int, use_torch: bool = True) -> None:
    """Fix threads and seeds of this process, so that the same parameters give the same bytes on the same machine.

    The thread count is part of the result (sums are split by thread), so the variables of the environment are set, not
    merely proposed. Torch uses deterministic algorithms: on the CPU `index_put_` with accumulation adds in the order of
    the threads without them. Warnings only, because some CUDA kernels have no deterministic form and a GPU run may use
    them; filling fresh memory, which torch adds for debugging, is off: it costs time and changes no result.

    Args:
        threads: >= 1, of torch and of BLAS.
        seed: >= 0, of `random`, numpy's and torch's global generators.
        use_torch: import torch and configure it; False for stages without tensors (its import takes a second).
    """
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    telemetry_off()
    random.seed(seed)
    _seed_numpy(seed)
    if use_torch:
        _configure_torch(threads, seed)


def _seed_numpy(seed: int) -> None:
    import numpy as np

    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that we call draw from the global generator


def _configure_torch(threads: int, seed: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports the compiler: 6 s
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpus_seen() -> int:
    """Number of GPUs that torch sees."""
    import torch

    return torch.cuda.device_count()


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux for SIGTERM when the parent process ends, so that a killed `dvc` leaves no training behind.

    Args:
        parent: id of the expected parent; where it is gone already, SIGTERM comes at once.

    On other systems nothing happens: there the lock of the work folder keeps a second run from disturbing the first.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
