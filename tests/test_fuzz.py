"""The fuzzing script finds nothing in a few inputs, sees what is wrong, and makes the same input from the same seed."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.damage import Input, damage_bytes, damage_json, damage_yaml
from tests.runs import PROJECT

SCRIPT = PROJECT / "scripts/fuzz.py"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


def sleeps() -> int:
    time.sleep(60)
    return 0


def fails() -> int:
    raise KeyError("x")


def dies() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda: 0, None), (lambda: 2, None), (fails, "traceback: KeyError: 'x'"), (dies, "exit code -9"), (lambda: 3, "exit code 3"),
        (sleeps, "no end within 0.5 s"),
    ],
    ids=["done", "told", "fails", "dies", "odd", "sleeps"],
)  # fmt: skip
def test_every_kind_of_fault_is_seen(fuzz: ModuleType, read: object, reason: str | None, tmp_path: Path) -> None:
    code = fuzz._run(Input("x", "x", read), tmp_path, tmp_path / "said", 0.5)  # type: ignore[arg-type]
    assert fuzz._reason(code, (tmp_path / "said").read_text(), 0.5) == reason


def test_damage_follows_from_the_seed() -> None:
    for damage in (lambda chance: damage_bytes(b"abc" * 99, chance), lambda chance: damage_json('{"a": [1, {"b": 2}]}', chance),
                   lambda chance: damage_yaml("a: {b: [1, 2]}", chance)):  # fmt: skip
        once, again = ([damage(random.Random(f"0:{number}")) for number in range(50)] for _ in range(2))
        assert once == again
        assert len(set(once)) > 25


@pytest.mark.slow
@pytest.mark.holds("No damaged file ends in a traceback or a hang")
def test_a_few_inputs_are_read_or_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--inputs", "200", "--seed", "7", "--keep", str(tmp_path), "--limit", "30"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
