#!/usr/bin/env bash
# Make an environment that has TRL, lm-eval, quanto and hqq beside the project's own packages, and run scripts/try_tools.py in it.
#   scripts/try_tools.sh [TOOL ...]
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
TOOLS=${TOOLS:-.venv-tools}
if [ ! -f "$TOOLS/ready" ]; then
  "$PYTHON" -m venv "$TOOLS"
  own=$("$TOOLS/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$own/project.pth"  # torch and all else
  "$TOOLS/bin/python" -m pip install --no-deps --quiet --requirement scripts/requirements-tools.txt
  touch "$TOOLS/ready"
fi
PYTHONPATH=. HF_HUB_OFFLINE=1 "$TOOLS/bin/python" scripts/try_tools.py "$@"
