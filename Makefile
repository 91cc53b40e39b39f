# Each target does its own set-up: a fresh machine needs Python >= 3.11, gcc and make, nothing else.
PYTHON ?= python3
# Any build of PyTorch will do, e.g. make test TORCH='torch --index-url https://…/cu130'
TORCH ?= torch==2.13.0

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test fmt lint types docs check bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole journey on a real corpus, in under five minutes"
	@echo "make test    the test suite          make lint   ruff and the import contracts"
	@echo "make types   mypy --strict           make fmt    format the code"
	@echo "make docs    docs/cli.md from --help make check  lint, types, docs and tests"
	@echo "make bench   the benchmarks (quiet machine, minutes)"

# What a user gets, and nothing more.
.venv/.user: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nestling needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade 'pip>=25.1'
	$(PIP) --editable .
	@touch $@

# PyTorch goes first, so that no dependency picks another build of it.
.venv/.train: .venv/.user
	$(PIP) $(TORCH)
	$(PIP) --editable '.[train]'
	@touch $@

.venv/.dev: .venv/.train
	$(PIP) --editable '.[all]' --group dev
	@touch $@

demo: .venv/.train
	$(BIN)/nestling demo

# Two at a time, a file in one process: fixtures are made once, and two cores are common.
test: .venv/.dev
	$(BIN)/pytest --numprocesses 2 --dist loadfile

fmt: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: .venv/.dev
	$(BIN)/mypy

docs: .venv/.dev
	$(BIN)/python docs/make_cli_page.py

check: lint types docs test

bench: .venv/.dev
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/encode_and_sweep.py
	$(BIN)/python benchmarks/train_info_nce.py
	$(BIN)/python benchmarks/train_heads.py
	$(BIN)/python benchmarks/train_text.py
	$(BIN)/python benchmarks/train_images.py
	$(BIN)/python benchmarks/train_minilm.py

clean:
	rm -rf .venv demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
