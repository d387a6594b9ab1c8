# Each target makes the environment it needs; a second run finds it made.
#   make test PYTHON=python3.12 VENV=/tmp/venv ARGS="-k surgery"
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench zoo reliability clean

help:
	@echo "make demo | test | lint | bench | zoo | reliability | clean"

demo: $(INSTALLED)-demo
	$(BIN)/python examples/minilm.py
	$(BIN)/python examples/digits.py

test: $(INSTALLED)-dev
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(INSTALLED)-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(INSTALLED)-bench
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/large.py
	$(BIN)/python benchmarks/residue.py
	$(BIN)/python benchmarks/impact.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/repair.py
	$(BIN)/python benchmarks/distillation.py

zoo: $(INSTALLED)-bench
	$(BIN)/python benchmarks/zoo.py

reliability: $(INSTALLED)-dev
	$(BIN)/python -m pytest -n 2 -m reliability $(ARGS)
	$(BIN)/python benchmarks/reliability.py

# The environment stays: it takes minutes to make. `rm -r .venv` for a fresh one.
clean:
	rm -rf build dist out .cache .hypothesis .pytest_cache .ruff_cache
	find src tests examples benchmarks -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	@echo "making the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(INSTALLED)-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing layerprune[$*] into $(VENV) (minutes, the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	@touch $@
