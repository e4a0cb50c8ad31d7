"""The fork server's warm-up: importing this module IS the warm-up, so only the fork server may import it.

A worker forked after it reaches its first training step in about 30 ms instead of 3 s. The rules, each for a reason:

- One thread: a fork copies only the calling thread, so the server must never have a second; and small models train
  fastest on one (see THREADS_PER_WORKER).
- Never touch CUDA: a forked child of a process that did cannot use it. Hence availability is asked of NVML, not of
  the driver, and a build of torch with GPU support only goes forward here: the engine of the backward pass would
  start a thread per GPU, and an optimiser's step asks the driver whether a graph is being captured.
- Never import grpc.
- A warm-up that fails does not stop the server (multiprocessing would hide an ImportError): its traceback goes to
  stderr, the reason stays in WARM_UP_ERROR, and the worker that needs the missing thing says so itself.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import traceback
from types import FrameType

from ktrdr_core.execution.fork_server import THREADS_PER_WORKER, is_training_available
from ktrdr_core.execution.huge_pages import collapse_into_huge_pages
from ktrdr_core.execution.process_group import ask_for_signal_when_parent_dies, kill_child_groups

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_MODULES = (
    "faulthandler",
    "pandas",
    "talib",
    "safetensors.numpy",
    "ktrdr_core.execution.worker",
    "ktrdr_core.data.bar_store",
    "ktrdr_core.storage.artifact",
    "ktrdr_core.storage.staging",
)
_TORCH_MODULES = ("torch", "safetensors.torch", "ktrdr_core.training.run_job")


def _warm_up() -> None:
    for name in _MODULES:
        importlib.import_module(name)
    if is_training_available() is None:
        for name in _TORCH_MODULES:
            importlib.import_module(name)
        _take_steps()
        _load_kernels()


def _take_steps() -> None:
    """Take three steps of a tiny model; making the first Adam alone imports 1.3 s of modules."""
    import torch

    torch.set_num_threads(THREADS_PER_WORKER)
    may_touch_gpu = torch.backends.cuda.is_built() or torch.backends.mps.is_built()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]):
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(4, 3)
        )
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        x_NF, y_N = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)
        for _ in range(3):
            loss = torch.nn.functional.cross_entropy(model(x_NF), y_N)
            if not may_touch_gpu:
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()


def _load_kernels() -> None:
    """Load the compiled kernels; the first time on a machine this compiles them, which takes seconds."""
    from ktrdr_core.training.stack_engine import warm_up

    warm_up()


def _prepare_process() -> None:
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(THREADS_PER_WORKER)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    # pyarrow's allocator would start a thread of its own at import.
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    # A supervisor's SIGTERM to the whole group means the service, which drains; its pipe ends this server after it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A worker notices by itself that the service is gone, unless it is stopped or never lets go of the interpreter.
    signal.signal(signal.SIGUSR1, _end_after_service)
    ask_for_signal_when_parent_dies(signal.SIGUSR1)


def _end_after_service(number: int, frame: FrameType | None) -> None:
    kill_child_groups()
    os._exit(0)


WARM_UP_ERROR = ""

_prepare_process()
try:
    _warm_up()
except Exception as error:  # noqa: BLE001  # without the warm-up workers are slow, without the server there are none
    WARM_UP_ERROR = f"{type(error).__name__}: {error}"
    traceback.print_exc()
# What is loaded now lives for ever: the collector of a worker need not walk it, which would also copy its pages.
gc.collect()
gc.freeze()
collapse_into_huge_pages()
