# Everything here works on a machine that has only python3 (3.11 or newer), venv and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two processes that both compute with two threads on two cores slow each other down many times.
export OMP_NUM_THREADS ?= 1
# The CPU build of torch where there is no GPU; where pip cannot find that build, the usual one.
ifeq ($(shell command -v nvidia-smi 2>/dev/null),)
TORCH ?= torch==2.13.0+cpu
else
TORCH ?= torch
endif
PLAIN_TORCH := $(firstword $(subst +, ,$(TORCH)))
QUIET_PIP := python -m pip --disable-pip-version-check --quiet
DEMO := --env turnwise/Search-v0 --credit igpo --credit-arg gain_weight=0.3 --model tiny

.PHONY: demo test slow retrievers lint types wheel check tiny bench clean

demo: $(VENV)/.train ## train the embedded model, show held-out success before and after
	$(BIN)/turnwise train $(DEMO) --steps $${STEPS:-120} --name demo --overwrite

test: $(VENV)/.dev ## the quick tests
	$(BIN)/python -m pytest -q -m "not slow"

slow: $(VENV)/.dev ## the tests that train or start Ray
	$(BIN)/python -m pytest -q -m slow

retrievers: $(VENV)-retrievers/.ready ## the tests that need Lucene and FAISS, in a place of their own
	$(VENV)-retrievers/bin/python -m pytest -q tests/test_retrieval.py tests/test_lucene.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

wheel: $(VENV)/.dev ## build the wheel and run the quick tests against it
	BIN=$(abspath $(BIN)) bash .ci/wheel

tiny: $(VENV)/.train ## make the embedded model again
	$(BIN)/python -m turnwise.agents.tiny.make

bench: $(VENV)/.dev ## the benchmarks; they write benchmarks/results/*.json
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/credit_search.py

clean:
	rm -rf $(VENV) $(VENV)-retrievers .venv-wheel build dist *.egg-info src/*.egg-info

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Turnwise needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.python
	$(BIN)/$(QUIET_PIP) install "$(TORCH)" 2>/dev/null || \
		$(BIN)/$(QUIET_PIP) install "$(PLAIN_TORCH)"
	@touch $@

$(VENV)/.train: $(VENV)/.torch pyproject.toml
	$(BIN)/$(QUIET_PIP) install -e ".[train]"
	@touch $@

# pyserini brings many packages; those of the other environment stay as they are.
$(VENV)-retrievers/.ready: $(VENV)/.python pyproject.toml
	$(PYTHON) -m venv $(VENV)-retrievers
	$(VENV)-retrievers/bin/$(QUIET_PIP) install "$(TORCH)" 2>/dev/null || \
		$(VENV)-retrievers/bin/$(QUIET_PIP) install "$(PLAIN_TORCH)"
	$(VENV)-retrievers/bin/$(QUIET_PIP) install -e ".[pyserini,faiss]" pytest hypothesis
	@touch $@

$(VENV)/.dev: $(VENV)/.train pyproject.toml
	$(BIN)/$(QUIET_PIP) install -e ".[train,multi,dev]"
	@touch $@
