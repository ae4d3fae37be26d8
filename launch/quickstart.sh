#!/usr/bin/env bash
# From nothing to a table: makes .venv, installs mvdjax, writes the demo data set, pretrains two teachers, distils a
# student, fine-tunes and tests. Everything lands in quickstart/. Needs Python >= 3.11 and nothing else; works from any
# directory, takes no arguments; finished stages are not run again.
set -euo pipefail
started="$(date +%s)"
cd "$(dirname "$0")/.."
. launch/environment.sh
make_environment
exec .venv/bin/python -m mvdjax.quickstart --output=quickstart --started="$started"
