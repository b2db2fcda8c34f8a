"""scripts/mutate.py can break what it says: each text stands in the code once, and the tests that should notice are there."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.runs import PROJECT


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutate", PROJECT / "scripts/mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


MUTATE = load()


@pytest.mark.parametrize("mutation", MUTATE.MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_can_be_made(mutation: "MUTATE.Mutation", tmp_path: Path) -> None:  # type: ignore[name-defined]  # noqa: UP037
    copy = tmp_path / "accel_flowers" / mutation.file
    copy.parent.mkdir(parents=True)
    shutil.copy(PROJECT / "accel_flowers" / mutation.file, copy)
    before = ast.dump(ast.parse(copy.read_text()))
    MUTATE.mutate(mutation, tmp_path)
    assert ast.dump(ast.parse(copy.read_text())) != before, "it is code, and another one"
    with pytest.raises(LookupError):
        MUTATE.mutate(mutation, tmp_path)
    assert mutation.tests
    for test in mutation.tests:
        file, _, name = test.partition("::")
        functions = ast.walk(ast.parse((PROJECT / "tests" / file).read_text()))
        assert not name or name in {node.name for node in functions if isinstance(node, ast.FunctionDef)}, test


def test_names_are_their_own() -> None:
    names = [mutation.name for mutation in MUTATE.MUTATIONS]
    assert len(set(names)) == len(names) > 14
    assert {"exactly-once", "average-buffers", "heartbeat-apart", "fingerprint-of-names"} <= set(names)
