"""docs/guarantees.md names tests: each of them is there."""

from __future__ import annotations

import ast
import re

from tests.runs import PROJECT

TEXT = (PROJECT / "docs/guarantees.md").read_text()


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?", TEXT)
    assert len(named) > 30
    for file, test in named:
        path = PROJECT / "tests" / file
        assert path.is_file(), file
        tests = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert any(name.startswith(test) for name in tests), f"{file}::{test}"


def test_every_script_that_is_named_is_there() -> None:
    scripts = set(re.findall(r"`(scripts/\w+\.py)", TEXT))
    assert len(scripts) >= 3
    assert all((PROJECT / script).is_file() for script in scripts)
