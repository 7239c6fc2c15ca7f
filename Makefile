SHELL := /bin/bash
PYTHON ?= python3
ALGO ?= trpo
ENV ?= CartPole-v1
ARGS ?=
# Networks as small as most policies are slowed down by more threads.
export OMP_NUM_THREADS ?= 1
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e
SOURCES := sb3_trpo_plus tests benchmarks

.PHONY: help train test lint format check-format type docs bench wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv/.train: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) '.[zoo,plots,tensorboard,envs]'
	$(BIN)/sb3-trpo-plus enable
	touch $@

.venv/.test: .venv/.train
	$(INSTALL) '.[zoo,plots,tensorboard,envs,envpool,tests,lint,docs]'
	touch $@

train: .venv/.train  ## train and evaluate through RL Zoo: make train ALGO=npg ENV=CartPole-v1 ARGS="--seed 1"
	$(BIN)/rl_zoo3 train --algo $(ALGO) --env $(ENV) --progress $(ARGS)
	$(BIN)/sb3-trpo-plus report --algo $(ALGO) --env $(ENV)

test: .venv/.test  ## run the test suite
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/.test  ## look for mistakes
	$(BIN)/ruff check $(SOURCES)

format: .venv/.test  ## put the code into its standard form
	$(BIN)/ruff check --select I --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

check-format: .venv/.test  ## say whether it is in its standard form
	$(BIN)/ruff format --check $(SOURCES)

type: .venv/.test  ## check the types
	$(BIN)/mypy

docs: .venv/.test  ## build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

bench: .venv/.test  ## measure the speed, run what is missing of the other benchmarks, and print their tables
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/first_run.py
	$(BIN)/python benchmarks/family.py

wheel: .venv/.test  ## build the wheel and the source distribution into dist/, and check what an index would show of them
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

clean:  ## remove the environment and all that was built
	rm -rf .venv dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
