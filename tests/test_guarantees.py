"""docs/guarantees.md and the tests name each other: every promise there is held by tests that say so, and no others do."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

from tests.runs import PROJECT

TEXT = (PROJECT / "docs/guarantees.md").read_text()


def promised() -> dict[str, list[tuple[str, str]]]:
    """Promise → the tests that its row names: file and function, which is empty where the file alone is named."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", cells[-1])
        if line.startswith("|") and cells[0] not in ("promise", "---"):
            assert cells[0] not in rows, "two rows with one promise"
            rows[cells[0]] = named
    return rows


def held() -> dict[str, set[tuple[str, str]]]:
    """Promise → the tests that are marked with it: file and function."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for path in sorted((PROJECT / "tests").glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.holds":
                    (promise,) = decorator.args
                    assert isinstance(promise, ast.Constant)
                    assert isinstance(node, ast.FunctionDef)
                    found[promise.value].add((path.name, node.name))
    return found


def test_every_promise_is_held_by_tests_that_say_so() -> None:
    marked = held()
    rows = promised()
    assert len(rows) > 40
    for promise, named in rows.items():
        assert named, f"{promise}: its row names no test"
        for file, test in named:
            assert any(file == its_file and test in ("", its_test) for its_file, its_test in marked[promise]), (
                f'{file}::{test or "(one of them)"} lacks @pytest.mark.holds("{promise}")'
            )


def test_every_test_that_holds_a_promise_is_named_there() -> None:
    rows = promised()
    for promise, tests in held().items():
        assert promise in rows, f"{sorted(tests)} hold what docs/guarantees.md does not promise: {promise}"
        for file, test in tests:
            assert {(file, ""), (file, test)} & set(rows[promise]), (
                f"the row of '{promise}' does not name {file}::{test}"
            )


def test_every_script_that_is_named_is_there() -> None:
    scripts = set(re.findall(r"`(scripts/\w+\.py)", TEXT))
    assert len(scripts) >= 3
    assert all((PROJECT / script).is_file() for script in scripts)
