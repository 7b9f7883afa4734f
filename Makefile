# make quickstart: a model from raw text to chat.   make test: the suite.   Both set everything up first.
.PHONY: install quickstart test test-slow faults quality style help

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
EXTRAS := train,eval,serve,export,s3,dev
# the first of these that is 3.11, 3.12 or 3.13; name another with: make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)

export PATH := $(CURDIR)/$(BIN):$(PATH)
export TOKENIZERS_PARALLELISM ?= true

help:
	@echo "make quickstart   set up, then tokenizer, data, pretraining, SFT, DPO, evaluation, export"
	@echo "make test         set up, then the test suite        make test-slow  the long tests"
	@echo "make faults       set up, then the proofs of docs/reliability.md (ten minutes)"
	@echo "make quality      formatting, lint and types         make style      mend formatting"

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Ingot needs Python 3.11, 3.12 or 3.13 (with venv); install one, or: make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(INSTALLED)

quickstart: $(INSTALLED)
	ingot run recipes/quickstart --run.dir runs/quickstart

# One thread a worker: the tests are many and small.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal --cov --cov-report=term

test-slow: $(INSTALLED)
	python -m pytest -m slow

faults: $(INSTALLED)
	ingot faults

quality: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy

style: $(INSTALLED)
	ruff check --fix .
	ruff format .
