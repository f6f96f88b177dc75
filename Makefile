PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.PHONY: setup quickstart test unit lint bench compare gpu-proof soak base clean

setup: $(STAMP)  ## virtual environment with everything, at the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

quickstart: setup  ## corpus, training, evaluation, report, service, answers
	$(BIN)/qmop quickstart $(ARGS)

test: setup  ## every test but the soak, three files at a time: some wait more than they work
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not soak" -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

unit: setup  ## the tests that start neither Ray nor a server
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not soak and not pipeline and not slow" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup  ## style, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## timings as ratios (ARGS: projectors prefill corpus training evaluation quickstart, and on request elastic router); BENCHMARKS.md is made from these
	$(BIN)/python -m tests.bench $(ARGS)

compare: setup  ## methods against each other at tiny size: hours, resumable (ARGS: --list, --report, --rows, --budgets, ...)
	$(BIN)/python -m qmop.tiny.comparison $(ARGS)

gpu-proof: setup  ## the same tables, and prefill and decode of a whole 7B shape, on a CUDA GPU
	$(BIN)/python -m tests.bench gpu_proof

soak: setup  ## long seeded repetition and the slowest single tests; the record: tests/soak/RECORD.md
	$(BIN)/python -m pytest -m soak $(ARGS)

base: setup  ## train the embedded base anew (48 CPU minutes); replaces qmop/tiny/weights
	$(BIN)/python -m qmop.tiny.pretraining --output qmop/tiny/weights $(ARGS)

clean:  ## remove the environment and what tools left behind; runs/ stays
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
