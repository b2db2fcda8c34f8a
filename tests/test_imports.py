"""The arrows between the modules: which may know of which library and of which other module.

Imports are read with `ast`, so those inside functions count, too.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import accel_flowers

PACKAGE = Path(accel_flowers.__file__).parent
MODULES = {
    ".".join(("accel_flowers", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
"""Name → file."""
KNOW_ACCELERATE = {
    "build", "train", "watch", "evaluate", "checkpoint", "tracking", "processes", "meter", "memory", "peers",
    "dashboards", "debugging",
}  # fmt: skip
KNOW_NOTHING_OF_PROCESSES = [
    "metrics", "confusion", "label_metrics", "calibration", "intervals", "predictions", "models", "freezing", "objectives", "optim", "ema", "files", "saved_model", "predict", "sample", "download", "errors",
    "pages", "gallery", "prediction_output", "prediction_command",
    *(name.removeprefix("accel_flowers.") for name in MODULES if name.startswith(("accel_flowers.data.", "accel_flowers.inspection."))),
]  # fmt: skip


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
    return {name.partition(".")[0] for name in imported(MODULES[f"accel_flowers.{module}"], whole_file=whole_file)}


def neighbours(module: str, *, whole_file: bool = True) -> set[str]:
    """Our own modules that a module imports, by their names inside the package."""
    found = imported(MODULES[f"accel_flowers.{module}"], whole_file=whole_file) & MODULES.keys()
    return {name.removeprefix("accel_flowers.") for name in found} - {"accel_flowers"}


def everything_below(module: str, *, whole_file: bool = True) -> set[str]:
    """A module and all of ours that it needs, directly or through others."""
    found, waiting = {module}, [module]
    while waiting:
        new = neighbours(waiting.pop(), whole_file=whole_file) - found
        found |= new
        waiting += new
    return found


def test_the_imports_are_found() -> None:
    """That the tests below can fail."""
    assert {"train", "config", "metrics", "data.order", "__main__"} <= {name.partition(".")[2] for name in MODULES}
    assert {"torch", "accel_flowers"} <= libraries("train")
    assert {"build", "config", "watch"} <= neighbours("train")
    assert "train" in neighbours("cli")
    assert "train" not in neighbours("cli", whole_file=False)
    assert "models" in everything_below("predict")


@pytest.mark.parametrize("module", ["config", "cli", "__main__"])
def test_the_command_line_starts_without_heavy_libraries(module: str) -> None:
    for needed in everything_below(module, whole_file=False):
        assert not libraries(needed, whole_file=False) & {
            "torch", "torchvision", "accelerate", "datasets", "evaluate", "numpy", "PIL", "wandb", "safetensors",
            "imagehash", "jinja2", "pyarrow",
        }, needed  # fmt: skip


def test_config_never_imports_torch_or_accelerate() -> None:
    assert not libraries("config") & {"torch", "torchvision", "accelerate"}


def test_few_modules_know_accelerate() -> None:
    names = {name.removeprefix("accel_flowers.") for name in MODULES} - {"accel_flowers"}
    assert "processes" in {name for name in names if "accelerate" in libraries(name)} <= KNOW_ACCELERATE


@pytest.mark.parametrize("module", KNOW_NOTHING_OF_PROCESSES)
def test_parts_know_nothing_of_processes_nor_of_the_whole(module: str) -> None:
    assert not everything_below(module) & (KNOW_ACCELERATE | {"cli", "run_dir"})


def test_metrics_are_numpy_alone() -> None:
    for needed in everything_below("metrics"):
        assert not libraries(needed) & {"torch", "torchvision"}, needed


def test_predict_needs_the_saved_model_and_not_the_training() -> None:
    assert not everything_below("predict") & {"train", "build", "optim", "objectives", "checkpoint", "tracking"}


def test_worker_processes_of_an_inspection_start_without_heavy_libraries() -> None:
    for needed in everything_below("inspection.look"):
        assert not libraries(needed) & {"torch", "torchvision", "datasets"}, needed


def test_an_inspection_without_a_sheet_needs_no_torch() -> None:
    for needed in everything_below("inspection.command", whole_file=False):
        assert not libraries(needed, whole_file=False) & {"torch", "torchvision"}, needed


def test_an_inspection_needs_no_model() -> None:
    assert not everything_below("inspection.command") & {"train", "build", "models", "saved_model", "evaluate"}


@pytest.mark.parametrize("module", ["inspection.alike", "inspection.far", "inspection.findings"])
def test_findings_touch_no_files(module: str) -> None:
    assert not libraries(module) & {"torch", "datasets", "pathlib", "os"}


def test_the_report_reads_what_a_run_left_and_trains_nothing() -> None:
    reports = [name.removeprefix("accel_flowers.") for name in MODULES if name.startswith("accel_flowers.report.")]
    assert {"report.draw", "report.compare", "report.read", "report.cam"} <= set(reports)
    for name in reports:
        assert not everything_below(name) & (KNOW_ACCELERATE | {"optim", "objectives", "cli"}), name


def test_training_starts_without_what_it_needs_after_an_epoch() -> None:
    assert "label_metrics" in everything_below("train")
    for needed in everything_below("train", whole_file=False):
        assert not libraries(needed, whole_file=False) & {"evaluate", "wandb", "scipy"}, needed


def test_training_starts_without_the_libraries_of_the_report() -> None:
    for needed in everything_below("train", whole_file=False):
        assert not libraries(needed, whole_file=False) & {
            "matplotlib", "jinja2", "captum", "cleanlab", "sklearn", "scipy", "pyarrow", "pandas",
        }, needed  # fmt: skip
    assert {"captum", "matplotlib"} <= libraries("report.cam")


def test_nothing_imports_the_command_line() -> None:
    importers = {name for name, file in MODULES.items() if "accel_flowers.cli" in imported(file)}
    assert importers == {"accel_flowers.__main__"}


def test_no_module_imports_itself_in_a_circle() -> None:
    for name in MODULES:
        module = name.removeprefix("accel_flowers.")
        if module != "accel_flowers":
            assert module not in set().union(*map(everything_below, neighbours(module))), module
