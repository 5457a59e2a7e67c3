# Everything on a fresh machine with Python 3.11 or newer and a package index: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process a core, each with one thread: threads that wait for each other cost more than they bring.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

.PHONY: help demo test unit lint docs notebooks bench gpu clean

help:
	@echo "make demo   find and graft a skill in MiniLM, about a minute after set-up"
	@echo "make test   every check and test, real checkpoints included"
	@echo "make unit   lint, types and the tests that need no real checkpoint"
	@echo "make docs   the pages, notebooks and reference as a site in build/docs/site"
	@echo "make notebooks  run the notebooks of examples again and keep what they show"
	@echo "make bench  time and memory of applying a skill to 500 MB, against a copy"
	@echo "make gpu    checks and times on a card, in one table"

demo: $(READY)
	$(BIN)/surgery graft

test: $(READY) lint
	$(PYTEST) -m "not architectures and not fuzz"

unit: $(READY) lint
	$(PYTEST) -m "not real and not architectures and not fuzz"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python docs/build.py

notebooks: $(READY)
	$(BIN)/python docs/notebooks.py

bench: $(READY)
	$(BIN)/python -m tests.benchmarks.storage

gpu: $(READY)
	$(BIN)/python -m tests.benchmarks.gpu

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,demo,docs]'
	@touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
