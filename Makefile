# `make` lists the targets. They use the Python of .venv if `make setup` has made it; else set PYTHON.
# On Linux a plain `pip install torch` gets the CUDA build, several gigabytes; an extra index of CPU builds
# (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu) makes test-lowest and test-newest smaller.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
RUNS ?= outputs/runs
LOWEST ?= constraints-lowest.txt
ARGS ?=

FAST = -m "not slow and not smollm2"

.DEFAULT_GOAL := help
.PHONY: help setup run gallery report test test-fast test-lowest test-newest lint format types spell check hooks clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## make .venv with the tested versions
	python3 -m venv .venv
	.venv/bin/pip install -c constraints.txt -e '.[dev]'

run:  ## run an experiment: make run ARGS="method=snapkv budget=0.2"
	$(PYTHON) -m kvbench $(ARGS)

gallery:  ## draw the pictures of docs/gallery.md and the table of README.md from the runs in docs/
	$(PYTHON) -m kvbench.report.figures.gallery

report:  ## print the tables of the stored runs: make report RUNS=outputs/runs
	$(PYTHON) -m kvbench.report $(RUNS) $(ARGS)

test:  ## run all tests
	$(PYTHON) -m pytest $(ARGS)

test-fast:  ## run the tests without the slow ones and without the real model
	$(PYTHON) -m pytest $(FAST) $(ARGS)

test-lowest:  ## run the fast tests with the lowest supported versions, in .venv-lowest
	python3 -m venv .venv-lowest
	.venv-lowest/bin/pip install -c $(LOWEST) -e '.[dev]'
	.venv-lowest/bin/python -m pytest $(FAST) $(ARGS)

test-newest:  ## run the fast tests with the newest versions there are, in .venv-newest
	python3 -m venv .venv-newest
	.venv-newest/bin/pip install --upgrade --upgrade-strategy eager -e '.[dev]'
	.venv-newest/bin/python -m pytest $(FAST) $(ARGS)

lint:  ## check style and formatting
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format:  ## repair style and formatting
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types:  ## check types
	$(PYTHON) -m mypy

spell:  ## check spelling
	$(PYTHON) -m codespell_lib .

check: lint types spell test  ## lint, types, spelling and all tests, as before a commit

hooks:  ## let git run the pre-commit hooks in this clone
	$(PYTHON) -m pre_commit install

clean:  ## delete caches and builds, never results
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*/*' -prune -exec rm -rf {} +
