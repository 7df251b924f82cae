# make demo   environment, ML-100K, train, evaluate, sync, recommendations
# make test   environment, format, lint, types, tests
# A second call is quick: the environment is rebuilt only where pyproject.toml or constraints.txt changed.

VENV   ?= .venv
DEMO   ?= .
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN    := $(abspath $(VENV))/bin
STAMP  := $(VENV)/.stamp
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help venv demo test check unit slow audit bench bench-server quality faults docs dist clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,3s/^# //p' Makefile
	@echo "also: venv, check (no tests), unit (only tests), slow, audit, bench, bench-server, quality, faults, docs, dist, clean"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 on the PATH; install one or say make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit((not (3, 11) <= v < (3, 14)) and f"make: {sys.executable} is Python {v.major}.{v.minor}; expected 3.11, 3.12 or 3.13")'
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# A second call trains only where there is no finished run.
demo: $(STAMP)
	@cd $(DEMO) && export PATH="$(BIN):$$PATH" && say() { echo "\$$ $$*"; "$$@"; } && \
	say embedstore data fetch ml-100k && \
	{ embedstore runs show latest >/dev/null 2>&1 || say embedstore train --data ml-100k; } && \
	say embedstore evaluate --protocol serving && \
	say embedstore sync && \
	say embedstore query --user 196

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/pytest -q -n 2 --dist loadfile

test: check unit

slow: $(STAMP)
	$(BIN)/pytest -q -m 'slow and not server'

bench: $(STAMP)
	$(BIN)/python -m benchmarks --output docs/benchmarks.md

# Of the server at QDRANT_URL.
bench-server: $(STAMP)
	$(BIN)/python -m benchmarks server lifecycle memory --output docs/performance.md

# Half an hour: ten trainings of every preset.
quality: $(STAMP)
	$(BIN)/python -m benchmarks quality

# Breaks things on purpose, thousands of times; QDRANT_BIN names the program of a server.
faults: $(STAMP)
	$(BIN)/python -m tests.faults --output docs/faults.md

# Licences, a bill of materials and known vulnerabilities of all that is in $(VENV): docs/security.md.
audit: $(STAMP) build/audit/bin/pip-audit
	$(BIN)/python docs/audit.py build/audit/bin build

build/audit/bin/pip-audit: constraints.txt
	$(PYTHON) -m venv --clear build/audit
	build/audit/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt cyclonedx-bom pip-audit
	@touch $@

docs: $(STAMP)
	$(BIN)/python docs/generate.py

dist: $(STAMP)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
