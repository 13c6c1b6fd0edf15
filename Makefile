# `make demo` and `make test` are all that a stranger needs; both work on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bench lint docs clean model

demo: $(VENV)/ready
	$(BIN)/treering demo

test: $(VENV)/ready model
	$(BIN)/python -m pytest -q

bench: $(VENV)/ready model
	$(BIN)/python -m benchmarks

lint: $(VENV)/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(VENV)/ready
	$(BIN)/python docs/write_cli.py

model: $(VENV)/ready
	$(BIN)/treering models pull

$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(f"expected Python 3.11 or newer, found {sys.version.split()[0]}; give one with make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
