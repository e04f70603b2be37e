# make demo: the whole way on a shipped model. make lint, docs, test: what CI runs. make test-all: the full matrices too.
# make bench: measure on this machine.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := $(shell grep '^torch==' constraints.txt)
WORKERS ?= 2

.PHONY: demo test test-all lint docs bench clean
.DELETE_ON_ERROR:

# torch comes first and alone: resolved together with the rest, pip may choose another build of it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(TORCH)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[cpu,rtx,dev,docs]'
	touch $@

$(VENV): $(READY)

demo: $(READY)
	$(BIN)/dipgo-deploy demo

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-all: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "slow or not slow"

docs: $(READY)
	$(BIN)/mkdocs build --strict

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/dipgo-deploy search digits-unet --method uniform --ratio 0.8 --out demo/bench.json
	$(BIN)/dipgo-deploy export digits-unet --schedule demo/bench.json --out demo/bench
	$(BIN)/dipgo-deploy bench demo/bench --json

clean:
	rm -rf $(VENV) demo site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
