# Sourced by scripts/demo and scripts/test: a virtual environment of the project's own, with what $extras names.
# Usage: setup EXTRAS, for instance: setup "cpu". Idempotent, and fast where nothing has changed.

find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "bnfold needs Python 3.11 or later, and finds none; set PYTHON to one" >&2
  return 1
}

setup() {
  local extras=$1 python stamp
  stamp="$(cat pyproject.toml constraints.txt | cksum) $extras"
  if [ -f .venv/ready ] && grep -qxF "$stamp" .venv/ready; then
    return
  fi
  python=$(find_python)
  [ -x .venv/bin/pip ] || "$python" -m venv .venv # pip comes last: without it, an earlier attempt stopped half-way
  echo "setting up .venv (bnfold[$extras]) ..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
  # Replaced, not appended to: a stamp of an earlier pyproject.toml must not match again. Every set of extras holds cpu.
  printf '%s\n' "$stamp" "${stamp% *} cpu" >.venv/ready
}
