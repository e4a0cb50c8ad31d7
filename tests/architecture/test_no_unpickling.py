"""Nothing in the project unpickles: bytes from outside become data, never code.

One place is excepted: what a service's own child process answers through a pipe the service made, in
`ktrdr_core/execution/child.py`; multiprocessing itself starts its children the same way. Both ends are this program.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ktrdr_core", "backend_service", "trainer_service", "clients/python", "benchmarks", "examples", "tests")
TRUSTED_PIPE = {"ktrdr_core/execution/child.py": {"pickle"}}

_MODULES = {
    "pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "jsonpickle", "shelve", "marshal",
}  # fmt: skip
_CALLS = {"read_pickle", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}
_YAML_LOADERS = {"SafeLoader", "CSafeLoader", "_StrictLoader"}


def unpickled(source: str) -> list[str]:
    """Return what in a module's source could turn bytes into code."""
    return [found for node in ast.walk(ast.parse(source)) for found in _look(node)]


def _look(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in _MODULES)
    elif isinstance(node, ast.ImportFrom):
        if (node.module or "").partition(".")[0] in _MODULES:
            yield node.module or ""
        # Under another name, or without its module, a call below would not be recognised.
        yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name in {"load", *_CALLS})
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _unpickles(node, node.func):
        yield ast.unparse(node.func)


def _unpickles(call: ast.Call, function: ast.Attribute) -> bool:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    match ast.unparse(function.value), function.attr:
        case _, name if name in _CALLS:
            return True
        case "torch", "load":
            return given.get("weights_only") != "True"
        case (("torch.jit" | "torch.hub" | "torch.package"), name):
            return name.startswith("load")
        case (("np" | "numpy"), "load"):
            return given.get("allow_pickle", "False") != "False"
        case "yaml", ("load" | "load_all"):
            loader = given.get("Loader", ast.unparse(call.args[1]) if len(call.args) > 1 else "")
            return loader.rpartition(".")[2] not in _YAML_LOADERS
        case _, "recv":  # of a multiprocessing connection; a socket's names a size
            return not call.args
    return False


def test_nothing_unpickles() -> None:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(paths) > 300
    found = {}
    for path in paths:
        name = str(path.relative_to(ROOT))
        if forbidden := sorted(set(unpickled(path.read_text())) - TRUSTED_PIPE.get(name, set())):
            found[name] = forbidden
    assert found == {}


def test_yaml_loader_of_the_project_is_a_safe_one() -> None:
    from ktrdr_core.config import loader

    assert issubclass(loader._StrictLoader, yaml.SafeLoader | yaml.CSafeLoader)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import dill as json",
        "import os, shelve",
        "def f():\n    from pickle import loads",
        "from torch import load",
        "from numpy import load as read",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, map_location='cpu', weights_only=is_safe)",
        "torch.jit.load(path)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=flag)",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.load(text, Loader=yaml.UnsafeLoader)",
        "yaml.full_load(text)",
        "pd.read_pickle(path)",
        "connection.recv()",
    ],
)
def test_ways_to_unpickle_are_recognised(source: str) -> None:
    assert unpickled(source)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=False)",
        "yaml.safe_load(text)",
        "yaml.load(text, Loader=_StrictLoader)",
        "json.load(file)",
        "socket.recv(1)",
        "connection.recv_bytes()",
        "storage.load(name)",
    ],
)
def test_what_is_no_unpickling_is_let_be(source: str) -> None:
    assert not unpickled(source)
