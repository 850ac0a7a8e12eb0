# make quickstart   install, train a ResNet-20 on handwritten digits, say what it reached
# make test         install what is missing, run the tests
# make check        lint, types, import arrows
# make docs         the documentation as a site, into build/site
# make parity       the same run under every layout, and from each to each: the tables of docs/parallel.md
.DELETE_ON_ERROR:
.PHONY: quickstart test check docs parity clean
SHELL := /bin/bash

PYTHON ?= python3
BIN := .venv/bin

quickstart: .venv/.installed
	$(BIN)/restrain train digits_resnet20

test: .venv/.installed .venv/.browser
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow and not slurm and not gpu" $(ARGS)

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/shellcheck slurm/*.sh .ci/run

docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

parity: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.parallel.parity --json benchmarks/results/parity.json $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.parallel.resume --json benchmarks/results/resume.json $(ARGS)
	$(BIN)/python docs/tables.py

# The stamp is written last, so an interrupted installation is simply repeated.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Restrain needs Python 3.11 or newer; $(PYTHON) is older. Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@if command -v uv >/dev/null; then \
	  set -e; [ -x $(BIN)/python ] || uv venv -q --python $(PYTHON) .venv; \
	  uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
	  set -e; [ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv; \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

# The report is tested in a real browser; without one those tests skip and say so.
.venv/.browser: .venv/.installed
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; } \
	    >build-browser.log 2>&1 && rm build-browser.log || echo "chromium could not be installed: see build-browser.log"; \
	fi
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache build dist
