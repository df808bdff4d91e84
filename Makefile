# Two commands for a new user: `make demo` and `make test`. Both set everything up in .venv; no root, no compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
SHELL := /bin/bash
# torch's OpenMP threads otherwise spin while they wait: on cores that others use too, steps take ten times as long.
OMP_WAIT_POLICY ?= passive
export OMP_WAIT_POLICY
# Test files side by side, one thread each.
TEST_WORKERS ?= 2
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: install install-test demo test check bench clean

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "nvs-zoo needs Python 3.11 to 3.13; name one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[all]"
	$(BIN)/python scripts/finish_install.py
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[all,test]"
	$(BIN)/python scripts/finish_install.py
	touch $@

demo: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/demo.py --folder $(DEMO)

test: install-test
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

check: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: install-test
	for file in benchmarks/*.py; do PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python $$file; done

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .ruff_cache .hypothesis
