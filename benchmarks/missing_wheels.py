#!/usr/bin/env python
"""What a machine without a network lacks of this project's libraries: named, and fetched as wheels, with their sizes.

INSTALLED is a file with what that machine has, a name (or NAME==VERSION) a line: `python3 -m pip list --format freeze` prints it
there. Names and versions of what is missing are those of this environment; what else they need follows from their metadata.

  python benchmarks/missing_wheels.py INSTALLED                              # names and versions
  python benchmarks/missing_wheels.py INSTALLED --out wheels --python 3.12   # fetched, with their sizes

There: python3 -m pip install --no-index --no-deps --target DIR wheels/*.whl, and PYTHONPATH=DIR.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17, 12, 5)] + [
    "manylinux2014_x86_64"
]


def missing(installed: set[str]) -> dict[str, str]:
    """Name → version of what this project needs, directly or through others, and is not installed there."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    waiting, found = [Requirement(line) for line in project["dependencies"]], {}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if name in installed or name in found:
            continue
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        found[name] = metadata.version(name)
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(Requirement(line.partition(";")[0]))
    return dict(sorted(found.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("installed", type=Path, help="file: what the other machine has")
    parser.add_argument("--out", type=Path, help="new folder for the wheels; default: name them only")
    parser.add_argument("--python", default="3.12", help="its version of Python; default %(default)s")
    asked = parser.parse_args()
    lines = asked.installed.read_text().splitlines()
    there = {canonicalize_name(line.split("==")[0].split("@")[0].strip()) for line in lines if line.strip()}
    found = missing(there)
    if asked.out is None:
        print("\n".join(f"{name}=={version}" for name, version in found.items()))
        return 0
    wanted = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", *wanted]
    command += ["--python-version", asked.python, "--implementation", "cp", "--dest", str(asked.out)]
    subprocess.run([*command, *(f"{name}=={version}" for name, version in found.items())], check=True)
    wheels = sorted(asked.out.glob("*.whl"))
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:8.2f} MiB  {wheel.name}")
    print(f"{sum(wheel.stat().st_size for wheel in wheels) / 2**20:8.2f} MiB  {len(wheels)} wheels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
