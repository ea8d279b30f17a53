"""Examples in docstrings run; the native module is what its stub says; README's example runs."""

import ast
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import cexnn
from cexnn import _core

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(cexnn.__path__, "cexnn.") if module.name
)
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", [m for m in MODULES if m != "cexnn._core"])
def test_examples(name):
    module = importlib.import_module(name)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, _ = doctest.testmod(module, optionflags=options, extraglobs={"np": np})
    assert failed == 0


def test_every_public_name_is_documented():
    for name in cexnn.__all__:
        value = getattr(cexnn, name)
        if callable(value):
            assert len(value.__doc__ or "") > 60, name


def test_the_stub_matches_the_native_module():
    stub = ast.parse((Path(cexnn.__file__).parent / "_core.pyi").read_text())
    declared = {
        node.name: {f.name for f in getattr(node, "body", []) if isinstance(f, ast.FunctionDef)}
        for node in stub.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    }
    public = {name for name in dir(_core) if not name.startswith("_")}
    assert public == set(declared)
    for name, methods in declared.items():
        value = getattr(_core, name)
        if isinstance(value, type):
            protocols = {"__dlpack__", "__dlpack_device__", "__cuda_array_interface__"}
            named = {"__init__", "__len__", "__getitem__", "__deepcopy__"} | protocols
            own = {m for m in vars(value) if not m.startswith("_") or m in named}
            if not methods:  # made by others only
                own.discard("__init__")
            assert own == methods, name


def test_readme_example_runs(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert blocks, "README has no Python example"
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
