"""Nothing in the package unpickles, evaluates or imports what a file holds. Read with `ast`, so code that never ran counts."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.test_imports import MODULES, imported

UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "yaml"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "importlib.import_module", "torch.hub.load",
    "torch.jit.load", "torch.package.PackageImporter", "np.load", "numpy.load", "evaluate.load", "accelerator.load_state",
    "shutil.unpack_archive",
}  # fmt: skip
FORBIDDEN_METHODS = {"extractall", "load_state", "read_pickle"}
ONLY_TENSORS = {"torch.load", "wanted.get_state_dict", "torch.hub.load_state_dict_from_url"}
FORBIDDEN_OPTIONS = {"allow_pickle", "trust_remote_code", "shell"}


def trees() -> Iterator[tuple[str, ast.Module]]:
    for name, file in MODULES.items():
        yield name, ast.parse(file.read_text(encoding="utf-8"))


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str | None, ast.expr]]]:
    """Each call with the dotted name of what is called and its options."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {option.arg: option.value for option in node.keywords}


def is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def mistakes(tree: ast.AST) -> list[str]:
    """Calls that could run what a file holds."""
    found = []
    for name, options in calls(tree):
        method = name.rpartition(".")[2]
        if name in FORBIDDEN_CALLS or ("." in name and method in FORBIDDEN_METHODS):
            found.append(name)
        if name in ONLY_TENSORS and not is_true(options.get("weights_only")):
            found.append(f"{name} without weights_only=True")
        if method == "YAML" and "typ" in options and ast.unparse(options["typ"]) != "'safe'":
            found.append(f"{name} of an unsafe kind")
        if (
            method == "extract"
            and name.startswith("tar")
            and ast.unparse(options.get("filter", ast.Constant(0))) != "'data'"
        ):
            found.append(f"{name} without filter='data'")
        found += [f"{name} with {option}" for option in options if option in FORBIDDEN_OPTIONS]
    return found


@pytest.mark.holds("Nothing unpickles what may be untrusted, nothing runs what a file holds")
def test_the_package_runs_nothing_of_what_it_reads() -> None:
    found = {name: wrong for name, tree in trees() if (wrong := mistakes(tree))}
    # The one door for a user's own code, which the command line's --import alone opens.
    assert found.pop("core.registry") == ["importlib.import_module"]
    # Libraries that are named there, word for word, and imported before they are needed.
    assert found.pop("training.train") == ["importlib.import_module"] * 2
    assert found == {}


def test_only_the_command_line_imports_a_users_modules() -> None:
    callers = {name for name, tree in trees() if any(call.endswith("import_parts") for call, _ in calls(tree))}
    assert callers == {"cli.commands"}


def test_what_reads_weights_is_seen() -> None:
    """That the test above can fail: the calls that it is about are there."""
    seen = {name for _, tree in trees() for name, _ in calls(tree)}
    assert seen >= {"torch.load", "wanted.get_state_dict", "YAML", "tar.extract", "archive.extract"}


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=anything)",
        "eval(text)", "np.load(path)", "load(path, allow_pickle=True)", "YAML(typ='unsafe')", "archive.extractall(path)",
        "tar.extract(member)", "datasets.load_dataset(name, trust_remote_code=True)", "evaluate.load('accuracy')",
    ],
)  # fmt: skip
def test_what_would_run_code_is_found(code: str) -> None:
    assert len(mistakes(ast.parse(code))) == 1


@pytest.mark.holds("Nothing unpickles what may be untrusted, nothing runs what a file holds")
def test_no_library_that_unpickles_is_imported_for_more_than_its_error() -> None:
    for name, tree in trees():
        libraries = {full.partition(".")[0] for full in imported(MODULES[name])}
        assert not libraries & (UNPICKLERS - {"pickle"}), name
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert {attribute for attribute in used if attribute.startswith("pickle.")} <= {"pickle.UnpicklingError"}, name
        assert not any(full.startswith("pickle.") for full in imported(MODULES[name])), "no name of it by itself"
