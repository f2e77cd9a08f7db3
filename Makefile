# Every target sets up what it needs: a .venv, pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test lint check setup bench faults wheel clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   the whole life on built-in data"
	@echo "make test   all tests      make lint   format, lint, types      make check   both"
	@echo "make setup  install only   make bench  speed against peers      make wheel   build a wheel"
	@echo "make faults half an hour of kills, full disks and damage"

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[deepspeed]' \
	  || echo "DeepSpeed can't be installed here; every single-process command works without it"
	touch $@

setup: $(STAMP)

demo: setup
	$(BIN)/fledge demo

# Two workers with one thread each: the same numbers whatever the machine's load.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

bench: setup
	$(BIN)/python -m bench

# Kills, full disks, damage and stops in the middle of every command; some of it is in `make test`.
faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not gpu" tests/faults

wheel: setup
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

clean:
	rm -rf .venv build dist *.egg-info
