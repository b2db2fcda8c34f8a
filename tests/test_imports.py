"""The arrows between the packages: imports point down, and heavy libraries are imported where they are needed.

Imports are read with `ast`, so those inside functions count, too.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import accel_flowers

ORDER = (
    "core", "config", "metrics", "samples", "distributed", "data", "models", "tracking", "html", "inference",
    "inspection", "report", "probe", "selfcheck", "training", "study", "labels", "export", "serving", "cli",
)  # fmt: skip
"""The packages, from bottom to top: a module imports from its own package and from those before it."""

PACKAGE = Path(accel_flowers.__file__).parent
MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
    if file.parent != PACKAGE
}
"""Name inside the package ("data.sampler") → file."""


@functools.cache
def imported(file: Path, *, whole_file: bool = True) -> frozenset[str]:
    """Full names of all modules (and of names in them) that a file imports; else only those imported with it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree) if whole_file else run_at_import(tree.body):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports by a relative name"
            assert node.module is not None
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def run_at_import(statements: list[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes that run when a module is imported: those outside of functions."""
    waiting: list[ast.AST] = list(statements)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))


def libraries(module: str, *, whole_file: bool = True) -> set[str]:
    """First names of what a module imports: "torch", "json"."""
    return {name.partition(".")[0] for name in imported(MODULES[module], whole_file=whole_file)}


def neighbours(module: str, *, whole_file: bool = True) -> set[str]:
    """Our own modules that a module imports, by their names inside the package."""
    found = {name.removeprefix("accel_flowers.") for name in imported(MODULES[module], whole_file=whole_file)}
    return found & MODULES.keys()


def everything_below(module: str, *, whole_file: bool = True) -> set[str]:
    """A module and all of ours that it needs, directly or through others."""
    found, waiting = {module}, [module]
    while waiting:
        new = neighbours(waiting.pop(), whole_file=whole_file) - found
        found |= new
        waiting += new
    return found


def modules_of(package: str) -> list[str]:
    """Its modules; there are some."""
    found = [name for name in MODULES if name.startswith(f"{package}.")]
    assert found, package
    return found


def test_the_imports_are_found() -> None:
    """That the tests below can fail."""
    assert {"torch", "accel_flowers"} <= libraries("training.loop")
    assert {"training.run", "config.schema", "distributed.preemption"} <= everything_below("training.loop")
    assert "training.train" in neighbours("cli.train")
    assert "training.train" not in neighbours("cli.train", whole_file=False)


def test_the_packages_are_those_of_the_order() -> None:
    assert {file.name for file in PACKAGE.iterdir() if file.suffix == ".py"} == {"__init__.py", "__main__.py"}
    assert {file.parent.name for file in PACKAGE.glob("*/__init__.py")} == set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    level = ORDER.index(module.partition(".")[0])
    above = {other for other in neighbours(module) if ORDER.index(other.partition(".")[0]) > level}
    assert not above, f"{module} imports from packages above its own: {', '.join(sorted(above))}"


def test_no_module_imports_itself_in_a_circle() -> None:
    for module in MODULES:
        assert module not in set().union(*map(everything_below, neighbours(module))), module


HEAVY = {"torch", "torchvision", "accelerate", "datasets", "evaluate", "numpy", "PIL", "wandb", "safetensors",
         "imagehash", "jinja2", "pyarrow"}  # fmt: skip


@pytest.mark.parametrize("module", ["config.schema", "cli.main"])
def test_the_command_line_starts_without_heavy_libraries(module: str) -> None:
    for needed in everything_below(module, whole_file=False):
        assert not libraries(needed, whole_file=False) & HEAVY, needed


@pytest.mark.parametrize("package", ["core", "config", "metrics", "samples", "inspection", "html"])
def test_what_knows_nothing_of_processes(package: str) -> None:
    for module in modules_of(package):
        assert not any(needed.startswith("distributed.") for needed in everything_below(module)), module
        assert "accelerate" not in libraries(module), module


def test_config_never_imports_torch() -> None:
    for needed in everything_below("config.loading"):
        assert not libraries(needed) & {"torch", "torchvision", "accelerate"}, needed


def test_metrics_are_numpy_alone() -> None:
    for module in modules_of("metrics"):
        for needed in everything_below(module):
            assert not libraries(needed) & {"torch", "torchvision"}, needed


def test_worker_processes_of_an_inspection_start_without_heavy_libraries() -> None:
    for needed in everything_below("inspection.analysis"):
        assert not libraries(needed) & {"torch", "torchvision", "datasets"}, needed


def test_an_inspection_without_a_sheet_needs_no_torch() -> None:
    for needed in everything_below("inspection.command", whole_file=False):
        assert not libraries(needed, whole_file=False) & {"torch", "torchvision"}, needed


@pytest.mark.parametrize("module", ["inspection.near_duplicates", "inspection.outliers", "inspection.findings"])
def test_findings_touch_no_files(module: str) -> None:
    assert not libraries(module) & {"torch", "datasets", "pathlib", "os"}


def test_training_starts_without_what_it_needs_later() -> None:
    assert "metrics.label_metrics" in everything_below("training.train")
    for needed in everything_below("training.train", whole_file=False):
        assert not libraries(needed, whole_file=False) & {
            "evaluate", "wandb", "scipy", "matplotlib", "jinja2", "captum", "cleanlab", "sklearn", "pyarrow", "pandas",
        }, needed  # fmt: skip
    assert {"captum", "matplotlib"} <= libraries("report.cam")
