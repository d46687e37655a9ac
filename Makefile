# Needs Python 3.10 or later with venv, a C++20 compiler, make, and the package registry; everything else is installed
# into .venv. What is done once is remembered by stamp files there, so a second `make` is quick.

PYTHON ?= python3
VENV ?= .venv
BUILD ?= build
PYTEST_ARGS ?=
BENCH_ARGS ?=
TORCH ?= torch==2.13.0+cpu
WERROR ?= OFF

BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := $(shell find csrc cmake -type f 2>/dev/null) CMakeLists.txt
JOBS := $(shell nproc 2>/dev/null || echo 2)

# TensorFlow: with CUDA where an NVIDIA GPU answers, else the small build, which exists for x86-64 only. `make TENSORFLOW=`
# leaves it out, and the tests that need it are skipped.
TENSORFLOW ?= $(shell if nvidia-smi -L 2>/dev/null | grep -q GPU; then echo 'tensorflow[and-cuda]>=2.16'; \
	elif [ "$$(uname -m)" = x86_64 ]; then echo 'tensorflow-cpu>=2.16'; else echo 'tensorflow>=2.16'; fi)

# CMake and Ninja come from the virtual environment, so that every build uses the same ones.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export CMAKE_GENERATOR := Ninja

.DEFAULT_GOAL := help
.PHONY: help demo build test test-cpp test-tsan test-asan test-python test-doors lint format package docs bench clean distclean

help: ## This list
	@echo 'DistNet. The targets:'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMPS)/demo ## Train AlexNet on two workers, in under five minutes
	@$(BIN)/distnet train --demo

build: $(STAMPS)/test ## The package, editable, with all that tests and checks need
	@:

test: test-cpp test-tsan test-asan test-python ## All tests: C++ plain and under the sanitizers, then Python

test-cpp: $(STAMPS)/tools ## C++ tests with the shipped flags
	@$(call ctest,dev,shipped flags)

test-tsan: $(STAMPS)/tools ## C++ tests under ThreadSanitizer
	@$(call ctest,tsan,ThreadSanitizer)

test-asan: $(STAMPS)/tools ## C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(call ctest,asan,AddressSanitizer + UndefinedBehaviorSanitizer)

# Most tests wait for processes of their own, so one more file than there are cores runs at a time.
test-python: $(STAMPS)/test $(STAMPS)/torch $(STAMPS)/jax ## Python tests; PYTEST_ARGS='-k name' picks some
	@$(BIN)/python -m pytest tests/python -q -n $(shell expr $(JOBS) + 1) --dist loadfile $(PYTEST_ARGS)

# One job at a time: each has ranks of its own on every processor.
test-doors: $(STAMPS)/test $(STAMPS)/doors $(STAMPS)/jax-doors ## Trainers of others with DistNet behind them; PYTEST_ARGS='-m door': one case each
	@$(BIN)/python -m pytest tests/doors -q $(PYTEST_ARGS)

lint: $(STAMPS)/test ## Formatting, lint rules and types, C++ and Python
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@if [ -f distnet/_native.pyi ]; then \
	  $(BIN)/python -m mypy.stubtest distnet._native --allowlist tests/python/stubtest_allowlist.txt; fi
	@find csrc tests/cpp bench/cpp -name '*.h' -o -name '*.cc' | xargs $(BIN)/clang-format --dry-run -Werror
	@$(tidy)
	@echo 'lint: clean'

format: $(STAMPS)/test ## Rewrite the formatting of all C++ and Python files
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix --select I .
	@find csrc tests/cpp bench/cpp -name '*.h' -o -name '*.cc' | xargs $(BIN)/clang-format -i

package: $(STAMPS)/tools ## Source package and wheel, the wheel tried out in a fresh environment
	@rm -rf $(BUILD)/package && mkdir -p $(BUILD) && $(PIP) build && $(BIN)/python -m build --outdir $(BUILD)/package > $(BUILD)/package.log 2>&1 \
	  || { cat $(BUILD)/package.log; exit 1; }
	@$(PYTHON) -m venv $(BUILD)/package/venv
	@$(BUILD)/package/venv/bin/python -m pip install --quiet --disable-pip-version-check $(BUILD)/package/*.whl
	@$(BUILD)/package/venv/bin/python tests/wheel_check.py

# Everything anew each time: what was built before would keep its warnings to itself, and its old lists of pages.
docs: $(STAMPS)/docs ## The site, into build/docs; a warning is an error
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --write-all docs $(BUILD)/docs
	@echo 'The site is $(BUILD)/docs/index.html'

bench: $(STAMPS)/test $(STAMPS)/torch $(STAMPS)/jax ## All against the machine's limits and rivals, into docs/results/benchmarks.md: 15 minutes
	@$(BIN)/python -c 'import ray' 2>/dev/null || $(PIP) 'ray>=2.40' || echo 'Ray is not to be had here: it is left out'
	@mkdir -p $(BUILD) && { cmake -S . -B $(BUILD)/stores -DCMAKE_BUILD_TYPE=Release -DDISTNET_BUILD_BENCH=ON && \
	  cmake --build $(BUILD)/stores --target bench_stores -j $(JOBS); } > $(BUILD)/stores.log 2>&1 \
	  || { tail -n 40 $(BUILD)/stores.log; exit 1; }
	@$(BIN)/python bench/run.py $(BENCH_ARGS)

clean: ## Remove what was built; the virtual environment stays
	@rm -rf $(BUILD) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	@rm -f $(STAMPS)/demo $(STAMPS)/test

distclean: clean ## Remove the virtual environment, too
	@rm -rf $(VENV)

# ---- what is done once ---------------------------------------------------------------------------------------------

# The compiler's own output is shown only when something fails.
define ctest
	mkdir -p $(BUILD) && echo 'C++ tests: $(2)' && \
	if ! { cmake --preset $(1) -DDISTNET_WERROR=$(WERROR) && nice cmake --build --preset $(1) -j $(JOBS); } > $(BUILD)/$(1).log 2>&1; then \
	  tail -n 80 $(BUILD)/$(1).log; echo 'The whole log is $(BUILD)/$(1).log'; exit 1; fi && \
	ctest --preset $(1) -j $(JOBS) --quiet -O $(BUILD)/$(1)-tests.log || { cat $(BUILD)/$(1)-tests.log; exit 1; } && \
	grep 'tests passed' $(BUILD)/$(1)-tests.log
endef

# clang-tidy reads how each file is compiled from a build folder that is configured and never built. It counts what it
# suppressed on the standard error, which is shown only when something is wrong.
define tidy
	mkdir -p $(BUILD) && cmake --preset dev -B $(BUILD)/tidy -DDISTNET_BUILD_MODULE=ON -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON > $(BUILD)/tidy.log 2>&1 && \
	find csrc -name '*.cc' | nice xargs -P $(JOBS) -n 1 $(BIN)/clang-tidy -p $(BUILD)/tidy --quiet 2> $(BUILD)/tidy.log \
	  || { cat $(BUILD)/tidy.log; exit 1; }
endef

# $(1): extras; the module is built here, without isolation, so that a rebuild compiles only what changed.
define install
	$(PIP) --no-build-isolation -C build-dir=$(BUILD)/module --editable '.[$(1)]' $(if $(TENSORFLOW),'$(TENSORFLOW)')
endef

# What an extra of pyproject.toml lists on one line, for installs without DistNet itself.
extra = $(shell sed -n 's/^$(1) = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ',' | sed "s/\"/'/g")

$(BIN)/python:
	@echo 'Making a virtual environment in $(VENV)'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "DistNet needs Python 3.10 or later; set PYTHON=")'
	@$(PYTHON) -m venv $(VENV)

$(STAMPS)/tools: pyproject.toml | $(BIN)/python
	@echo 'Installing the build tools'
	@mkdir -p $(STAMPS)
	@$(PIP) --upgrade 'pip>=23' 'cmake>=3.21' ninja 'pybind11>=2.13' 'scikit-build-core>=0.11'
	@touch $@

$(STAMPS)/demo: $(STAMPS)/tools $(SOURCES)
	@echo 'Building DistNet and installing what the demonstration needs (minutes, the first time)'
	@$(call install,train)
	@touch $@

$(STAMPS)/test: $(STAMPS)/tools $(SOURCES)
	@echo 'Building DistNet and installing what the tests need (minutes, the first time)'
	@$(call install,bench$(comma)dev$(comma)train)
	@touch $@ $(STAMPS)/demo

# The optimizers are compared with PyTorch's. The plain build of PyPI would draw gigabytes of CUDA, so only the build for
# CPUs is asked for, of the registry that pip is set to, then of PyTorch's own; those tests are skipped without it.
$(STAMPS)/torch: $(STAMPS)/tools
	@echo 'Installing PyTorch, which the optimizer tests compare with'
	@$(PIP) '$(TORCH)' 2>/dev/null \
	  || $(PIP) --retries 1 --timeout 30 --extra-index-url https://download.pytorch.org/whl/cpu '$(TORCH)' 2>/dev/null \
	  || echo 'PyTorch is not to be had here: the tests that compare with it are skipped'
	@touch $@

# Lightning, accelerate and transformers. Without PyTorch for CPUs they would draw the build of PyPI, with CUDA.
$(STAMPS)/doors: $(STAMPS)/torch pyproject.toml
	@echo 'Installing the trainers over PyTorch'
	@{ $(BIN)/python -c 'import torch' && $(PIP) $(call extra,doors); } 2> /dev/null \
	  || echo 'Lightning, accelerate and transformers are not to be had here: their tests are skipped'
	@touch $@

# JAX's plain package is its build for CPUs. Keras comes with TensorFlow; named here, it is there without TensorFlow, too.
$(STAMPS)/jax: $(STAMPS)/tools pyproject.toml
	@echo 'Installing JAX, optax and Keras'
	@$(PIP) $(call extra,jax) $(call extra,keras) 'optax>=0.2' 2> /dev/null \
	  || echo 'JAX, optax or Keras is not to be had here: the tests that need them are skipped'
	@touch $@

$(STAMPS)/jax-doors: $(STAMPS)/jax pyproject.toml
	@echo 'Installing Flax'
	@{ $(BIN)/python -c 'import jax' && $(PIP) $(call extra,jax-doors); } 2> /dev/null \
	  || echo 'Flax is not to be had here: its tests are skipped'
	@touch $@

# The pages are made from the source, so this needs neither the module nor a framework.
$(STAMPS)/docs: pyproject.toml | $(BIN)/python
	@echo 'Installing what the site is built with'
	@mkdir -p $(STAMPS)
	@$(PIP) $(call extra,docs) numpy
	@touch $@

comma := ,
