"""The number of threads of the BLAS that compiled code calls.

Numba's matrix products go to the OpenBLAS inside scipy, which is another one than numpy's or torch's and has a number
of threads of its own. At the sizes of these networks a second thread costs more than it brings, and it may change sums.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import TracebackType

import scipy.linalg.cython_blas  # noqa: F401  # loads the library that is looked for below
from scipy import __file__ as _scipy_file

_FOLDERS = ("../scipy.libs", ".dylibs")


class OneBlasThread:
    """Runs the body of a `with` on one BLAS thread and puts the number back after; a foreign BLAS is left as it is.

    A class, and one object for many bodies: a generator costs ten times as much, a twentieth of a small step.
    """

    def __init__(self) -> None:
        library = find_library()
        self._get = _one if library is None else library.scipy_openblas_get_num_threads
        self._set = None if library is None else library.scipy_openblas_set_num_threads
        self._threads = 1

    def __enter__(self) -> None:
        self._threads = self._get()
        if self._threads != 1 and self._set is not None:
            self._set(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads != 1 and self._set is not None:
            self._set(self._threads)


def find_library() -> ctypes.CDLL | None:
    """Return the OpenBLAS inside scipy, or None where scipy stands on another BLAS."""
    package = Path(_scipy_file).parent
    for folder in _FOLDERS:
        for path in sorted((package / folder).glob("libscipy_openblas*")):
            library = ctypes.CDLL(str(path.resolve()))
            if hasattr(library, "scipy_openblas_set_num_threads"):
                return library
    return None


def _one() -> int:
    return 1
