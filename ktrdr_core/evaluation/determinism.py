"""The conditions under which the same seed gives the same bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

NUM_THREADS = 1


@contextmanager
def deterministic_torch(device: str) -> Iterator[None]:
    """Run the body on one CPU thread, with deterministic kernels on a GPU; put the process back as it was after.

    One thread, because a different number of threads changes sums in the last bit, and because one is as fast as
    two for small networks and far faster beside a busy process (measured). On a GPU, cuDNN's recurrent layers would
    round their inputs to ten bits (TF32) unless told not to.
    """
    num_threads = torch.get_num_threads()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    allowed_tf32 = torch.backends.cudnn.allow_tf32
    torch.set_num_threads(NUM_THREADS)
    on_gpu = device.startswith("cuda")
    if on_gpu:
        # cuBLAS reads this when its handle is made; without it deterministic mode refuses matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        if on_gpu:
            torch.use_deterministic_algorithms(was_deterministic)
            torch.backends.cudnn.allow_tf32 = allowed_tf32
