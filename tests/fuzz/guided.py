"""`python -m tests.fuzz.guided TARGET DIRECTORY LIBFUZZER_FLAGS...`: the process atheris runs in."""

from __future__ import annotations

import gc
import resource
import sys
from importlib import import_module
from pathlib import Path

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

MEMORY_LIMIT_BYTES = 1 << 30  # a process that grows larger has a defect: its input ends in a MemoryError


def main() -> None:
    name, directory = sys.argv[1:3]
    # Only our own code is instrumented: the coverage of libraries would lead astray.
    with atheris.instrument_imports(include=["ktrdr_core", "backend_service"]):
        target = import_module("tests.fuzz.targets").TARGETS[name]
    probe = target.build(Path(directory))
    gc.freeze()
    # Not libFuzzer's own limit: it asks for the peak, and Linux hands that of the process that started this one on.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    atheris.Setup([sys.argv[0], *sys.argv[3:]], probe)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
