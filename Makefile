# Everything runs in a virtual environment of its own, made on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXAMPLE := examples/fashion

.PHONY: setup demo test bench lint clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed \
		--constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: $(READY)
	cd $(EXAMPLE) && $(CURDIR)/$(BIN)/edgekit build

test: $(READY)
	$(BIN)/python -m pytest

bench: $(READY)
	$(BIN)/python benchmarks/run_cases.py --out build/bench

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(EXAMPLE)/build build dist .pytest_cache .mypy_cache .ruff_cache
