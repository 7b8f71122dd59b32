# `make demo` on a fresh clone sets everything up and makes pictures; nothing else has to be installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test check chaos bench bench-model

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/latentmill manifest show manifests/demo.parquet --rows 4
	$(BIN)/latentmill generate manifests/demo.parquet work/demo
	$(BIN)/latentmill inpaint manifests/holes.parquet work/demo-inpaint
	$(BIN)/latentmill upscale manifests/small.parquet work/demo-upscale
	for run in demo demo-inpaint demo-upscale; do $(BIN)/latentmill report work/$$run || exit 1; done
	@echo "The pictures are in work/demo*/data (Parquet); look at them in work/demo*/report/index.html"

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

chaos: $(STAMP)
	$(BIN)/python -m tests.chaos --seeds 100 --rows 300 --faults 5

bench: $(STAMP)
	for benchmark in engine edits pipeline; do $(BIN)/python -m tests.benchmarks.bench_$$benchmark || exit 1; done

bench-model: $(STAMP)
	$(BIN)/python -m tests.benchmarks.score_model
	$(BIN)/python -m tests.benchmarks.score_inpainting
	$(BIN)/python -m tests.benchmarks.score_upscaler
