# The commands of this project. `make run` and `make test` are the two that the README names; each sets up .venv first
# if it has to (scripts/setup_venv.sh: a GPU machine's own torch is kept, else the build that constraints.txt names).
#
#   make PYTHON=python3.12 …       another Python to make .venv with (3.10 or newer)
#   make TORCH_ARGS="…" …          more pip arguments for installing torch, such as --index-url for a CPU-only build
#   make test PYTEST_ARGS="-k cache"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
PYTHON ?= python3
TORCH_ARGS ?=
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
override VENV := .venv
STAMP := $(VENV)/.stamp

.PHONY: help setup run test test-all test-rest test-demo test-lmms test-video test-vllm test-latest test-claimed check bench embedded evaluate docs clean distclean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt scripts/setup_venv.sh
	@PYTHON='$(PYTHON)' TORCH_ARGS='$(TORCH_ARGS)' bash scripts/setup_venv.sh $(VENV)
	@touch $@

setup: $(STAMP) ## make or refresh .venv only

run: $(STAMP) ## fit recipes, answer the embedded questions dense, by the paper's method and by the recommended one: accuracy, tokens, FLOPs, time
	@env -u MODEL -u DATA -u RATIO -u MODEL_BASE -u VISION_TOWER BY='mass drift' PYTHON='$(CURDIR)/$(VENV)/bin/python' bash LLaVA_1.5/scripts/v1_5/eval/textvqa.sh

test: $(STAMP) ## the tests of the product, in two processes (WORKERS=0 for one, PYTEST_ARGS for more arguments)
	@$(VENV)/bin/python -m pytest -n $(WORKERS) -m 'not rest' --durations=25 $(PYTEST_ARGS)

test-all: test test-rest ## all tests

test-rest: $(STAMP) ## what `make test` leaves out: making the embedded models, documentation, servers, runs that are killed and resumed
	@$(VENV)/bin/python -m pytest -n $(WORKERS) -m rest --durations=25 $(PYTEST_ARGS)

test-demo: $(STAMP) ## the demo's page in a real browser, in an environment beside .venv (needs Debian's chromium)
	@bash scripts/beside.sh $(VENV) demo $(PYTEST_ARGS)

test-lmms: $(STAMP) ## the plugin with the real lmms-eval, in an environment beside .venv
	@bash scripts/beside.sh $(VENV) lmms-eval $(PYTEST_ARGS)

test-video: $(STAMP) ## videos with the real video processors, in an environment beside .venv that has torchvision
	@bash scripts/beside.sh $(VENV) video $(PYTEST_ARGS)

test-vllm: $(STAMP) ## the plugin with the real vLLM (its CPU build), in an environment beside .venv
	@bash scripts/beside.sh $(VENV) vllm $(PYTEST_ARGS)

test-latest: $(STAMP) ## the wheel in an empty environment, then the method and the families on today's newest transformers and torch
	@WORKERS='$(WORKERS)' bash scripts/latest.sh $(VENV) $(PYTEST_ARGS)

test-claimed: $(STAMP) ## the method and the families on the older transformers that are claimed, in environments beside .venv
	@for version in $$($(VENV)/bin/python -c 'from fitprune.decoder.upstream import RAN; print(*RAN[:-1])'); do \
	    echo "transformers $$version" && WORKERS='$(WORKERS)' bash scripts/beside.sh $(VENV) transformers-$$version $(PYTEST_ARGS) || exit 1; done

check: $(STAMP) ## ruff (lint and format) and mypy
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy

bench: $(STAMP) ## prefill, dense and pruned, on random weights (BENCH_ARGS="--help" for the choices)
	@$(VENV)/bin/python -m fitprune bench $(BENCH_ARGS)

embedded: $(STAMP) ## remake the embedded model and its data (two hours on 2 cores); goes on if interrupted
	@$(VENV)/bin/python -m embedded.make runs/embedded --install fitprune/embedded

evaluate: $(STAMP) ## exact answers of the embedded model by family of question, dense and pruned, against other methods
	@$(VENV)/bin/python -m embedded.evaluate

docs: $(STAMP) ## the documentation as a site, into site/
	@$(VENV)/bin/zensical build --clean --strict

clean: ## remove caches and build leftovers (.venv and runs/ stay)
	rm -rf build dist site .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)*/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and .venv as well
	rm -rf $(VENV) $(VENV)-demo $(VENV)-lmms-eval $(VENV)-video $(VENV)-vllm $(VENV)-latest $(VENV)-transformers-*
