#!/usr/bin/env bash
# From nothing to a table: makes .venv, installs mvdjax, writes the demo data set, pretrains two teachers, distils a
# student, fine-tunes and tests; with --method=bevt it trains a tokenizer, an image stream and both streams instead.
# Everything lands in quickstart/. Needs Python >= 3.11 and nothing else; works from any directory; finished stages are
# not run again. Arguments go to mvdjax.quickstart (--help lists them).
set -euo pipefail
started="$(date +%s)"
cd "$(dirname "$0")/.."
. launch/environment.sh
make_environment
exec .venv/bin/python -m mvdjax.quickstart --output=quickstart --started="$started" "$@"
