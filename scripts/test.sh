#!/usr/bin/env bash
# Lint, types, tests: what CI does. Arguments go to pytest, for example: scripts/test.sh -m slow
# ACCEL_FLOWERS_TEST_PHOTOS and ACCEL_FLOWERS_TEST_WEIGHTS name folders of real photos (DIR/CLASS/*.jpg) and of real
# weights; the tests that need them are skipped where they are not set.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment dev
cd "$project"

ruff format --check .
ruff check .
mypy
# Three at a time, as some wait for others most of their time; a file's tests share their runs, and tests/conftest.py puts the longest files first.
pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=25 "$@"
