# shellcheck shell=bash
# Sourced by the scripts beside it, from the repository root: finds a Python and keeps .venv up to date.

# Prints the first interpreter that is 3.11, 3.12 or 3.13, or fails with what to do.
find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3.11 python3.12 python3.13 python; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "mvdjax needs Python 3.11, 3.12 or 3.13; install one, or name it: PYTHON=/path/to/python3.12 $0" >&2
  return 1
}

# make_environment [EXTRA]: .venv with mvdjax installed in place; installs again only when setup.py has changed.
make_environment() {
  local extra="${1:-}" python stamp
  python="$(find_python)"
  if ! .venv/bin/python -c '' 2>/dev/null; then
    echo "== making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
  fi
  stamp=".venv/installed-${extra:-core}"
  if ! cmp -s setup.py "$stamp"; then
    echo "== installing mvdjax${extra:+ with the extra $extra}"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}"
    cp setup.py "$stamp"
  fi
}
