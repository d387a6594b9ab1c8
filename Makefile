# Each target makes the environment it needs; a second run finds it made.
#   make test PYTHON=python3.12 VENV=/tmp/venv ARGS="-k surgery"
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
CONSTRAINTS ?= constraints.txt

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-torch lint docs bench zoo reliability clean

help:
	@echo "make demo | test | test-torch TORCH=… | lint | docs | bench | zoo | reliability | clean"

demo: $(INSTALLED)-demo
	$(BIN)/python examples/minilm.py
	$(BIN)/python examples/digits.py

test: $(INSTALLED)-dev
	$(BIN)/python -m pytest -n 2 $(ARGS)

ifeq ($(MAKECMDGOALS)$(TORCH),test-torch)
$(error name a version: make test-torch TORCH=2.14.1)
endif
# The suite under another torch, in an environment of its own. torchvision follows torch, so its pin goes.
test-torch: out/constraints-torch-$(TORCH).txt
	$(MAKE) test VENV=$(VENV)-torch-$(TORCH) CONSTRAINTS=$<

out/constraints-torch-%.txt: constraints.txt
	@mkdir -p out
	@sed 's/^torch==.*/torch==$*/; /^torchvision==/d' $< > $@

lint: $(INSTALLED)-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

# Runs the notebooks (minutes) and builds the site into out/site; reading it needs no network.
docs: $(INSTALLED)-docs
	$(BIN)/python docs/hooks/notebooks.py
	$(BIN)/python -m mkdocs build --strict
	@echo "open out/site/index.html"

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

$(INSTALLED)-%: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "installing layerprune[$*] into $(VENV) (minutes, the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[$*]'
	@touch $@
