#!/usr/bin/env bash
# Makes .venv, installs mvdjax with the extras test and torch, runs formatter, linter, type checker, shellcheck and tests.
# Needs Python >= 3.11 and nothing else; works from any directory, takes no arguments, may be run again.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
make_environment test,torch

echo "== ruff format and lint"
.venv/bin/ruff format --check .
.venv/bin/ruff check .
echo "== shellcheck"
.venv/bin/shellcheck launch/*.sh tests/integration/*.sh .ci/run
echo "== mypy"
.venv/bin/mypy
echo "== pytest"
# By files: what the tests of one share is made once.
.venv/bin/python -m pytest -n "$(nproc 2>/dev/null || echo 2)" --dist loadfile --no-loadscope-reorder
