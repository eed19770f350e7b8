# Two commands for users (demo, test) and one for developers (check). Each first makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --constraint requirements.txt
DEMO_ARGS ?=
PYTEST_ARGS ?=
# One process of tests per core; the tests of a file stay together.
PYTEST := $(VENV)/bin/python -m pytest -n auto --dist loadfile

.PHONY: demo test check clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.run-ready
	$(VENV)/bin/python -m mllm demo $(DEMO_ARGS)

test: $(VENV)/.dev-ready
	$(PYTEST) $(PYTEST_ARGS)

check: $(VENV)/.dev-ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTEST) $(PYTEST_ARGS)

# A stamp is written last, so an interrupted installation is taken up again, and a finished one is not repeated.
$(VENV)/.run-ready: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, found `$(PYTHON) --version`; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev-ready: $(VENV)/.run-ready
	@$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
