"""What pip gets: a wheel and an sdist with all that belongs in them and nothing else, which run by themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from accel_flowers import __version__
from accel_flowers.config.loading import recipe_names
from tests.runs import PROJECT

LAUNCH_CONFIGS = sorted(file.stem for file in (PROJECT / "accelerate_configs").glob("*.yaml"))


def build(source: Path, out: Path, *what: str) -> None:
    """Wheel, sdist or both; of both the wheel is made from the sdist."""
    command = [sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def tracked() -> set[str]:
    """Files of the project that git knows, or would add."""
    command = ["git", "-C", PROJECT, "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no git checkout")
    return {name for name in done.stdout.splitlines() if (PROJECT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was made from it."""
    out = tmp_path_factory.mktemp("dist")
    build(PROJECT, out)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("accel_flowers-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an empty environment with the wheel in it; what it depends on comes from this environment."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=True)
    python = home / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True, timeout=120)
    # After its own packages, and without this environment's .pth files: a checkout that is installed here stays unseen.
    (site_packages,) = home.glob("lib/python*/site-packages")
    libraries = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site_packages / "libraries.pth").write_text("\n".join(libraries) + "\n")
    return home / "bin"


def run(installed: Path, words: Sequence[str | Path], cwd: Path) -> str:
    """What the installed command prints, away from the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [installed / "accel-flowers", *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
        licence = next(name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        assert archive.read(licence) == (PROJECT / "LICENSE").read_bytes()
    expected = {name for name in tracked() if name.startswith("accel_flowers/")}
    configs = {f"accel_flowers/accelerate_configs/{name}.yaml" for name in LAUNCH_CONFIGS}
    assert names == expected | configs | {"accel_flowers/docs/guarantees.md"}
    assert "accel_flowers/py.typed" in names
    for name in recipe_names():
        assert f"accel_flowers/config/recipes/{name}.yaml" in names
    assert any(name.endswith(".html") for name in names), "templates of the pages"
    for line in ("License-Expression: Apache-2.0", "Requires-Dist: torch>=2.11", "Requires-Python: >=3.11"):
        assert line in metadata
    for minor in (11, 12, 13):
        assert f"Classifier: Programming Language :: Python :: 3.{minor}" in metadata


def test_the_sdist_holds_all_that_is_needed_to_work_on_it(built: Path) -> None:
    (path,) = built.glob("accel_flowers-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert names >= {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "RESULTS.md", "pyproject.toml"}
    assert {name.partition("/")[0] for name in names if "/" in name} >= {
        "accel_flowers", "accelerate_configs", "benchmarks", "docs", "examples", "scripts", "tests",
    }  # fmt: skip
    assert names - tracked() == {"PKG-INFO"}
    assert "docs/images/report.png" in names, "the README shows it"


def test_a_wheel_of_the_checkout_is_that_of_the_sdist(wheel: Path, tmp_path: Path) -> None:
    build(PROJECT, tmp_path, "--wheel")
    with zipfile.ZipFile(tmp_path / wheel.name) as ours, zipfile.ZipFile(wheel) as theirs:
        assert {entry.filename: entry.CRC for entry in ours.infolist()} == {
            entry.filename: entry.CRC for entry in theirs.infolist()
        }


def test_the_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [installed / "python", "-c", "import accel_flowers; print(accel_flowers.__file__)"],
        cwd=tmp_path, env={}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(installed.parent)), "not the checkout"
    assert run(installed, ["--version"], tmp_path) == f"{__version__}\n"
    recipes = run(installed, ["recipes"], tmp_path)
    assert [name for name in recipe_names() if f"\n{name} " not in recipes] == []
    listed = run(installed, ["launch-config"], tmp_path)
    assert [line.split()[0] for line in listed.splitlines()] == LAUNCH_CONFIGS
    for name in LAUNCH_CONFIGS:
        path = Path(run(installed, ["launch-config", name], tmp_path).removesuffix("\n"))
        assert path.is_relative_to(installed.parent)
        assert path.read_bytes() == (PROJECT / f"accelerate_configs/{name}.yaml").read_bytes()
    run(installed, ["sample", "flowers", "--images-per-class", "2"], tmp_path)
    assert len(list((tmp_path / "flowers").glob("*/*"))) == 10
