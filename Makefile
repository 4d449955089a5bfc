# Every target does its own set-up: an environment in .venv, torch, the extension compiled in place.
# Stamp files in .venv remember what is done, so that a second run repeats only what has changed.
#
#   make test ARGS="-k adam -x"             arguments for pytest, the demo or the benchmarks
#   make test TORCH=2.12.0                  another torch
#   make test PYTHON=python3.12             another Python, after `make distclean`
#   make test CC=clang-14 CXX=clang++-14    another compiler, after `make clean`

PYTHON ?= python3
TORCH  ?= 2.13.0
ARGS   ?=

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check
say   = @printf '\n==> %s\n' "$(1)"

# All of csrc, headers too: the stamp only decides whether to call ninja, and ninja knows which
# object depends on which header.
BUILD_INPUTS := setup.py pyproject.toml $(shell find csrc -type f)
VENV_READY   := $(VENV)/.stamp-venv
TORCH_READY  := $(VENV)/.stamp-torch-$(TORCH)
BUILT        := $(VENV)/.stamp-built

.PHONY: help demo test bench lint wheel clean distclean
.DELETE_ON_ERROR:

help:
	@echo "make demo    train on MNIST digits, plain PyTorch against mlp_ext: a table and a picture"
	@echo "make test    run the test suite"
	@echo "make bench   run the short benchmark suite"
	@echo "make lint    ruff, clang-format, mypy (needs no compiler)"
	@echo "make wheel   build a wheel into dist/"
	@echo "make clean   remove what was compiled; make distclean removes .venv as well"

demo: $(VENV)/.stamp-extra-demo
	$(BIN)/python examples/mnist.py $(ARGS)

test: $(VENV)/.stamp-extra-test
	$(BIN)/python -m pytest tests $(ARGS)

bench: $(VENV)/.stamp-extra-bench
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/.stamp-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu' \) -print0 \
	    | xargs -0 -r $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy

# build/lib* is emptied first: setuptools never removes from it a module that is gone from mlp_ext/.
wheel: $(TORCH_READY)
	rm -rf build/lib*
	$(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	@ls -l dist/*.whl

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	rm -f mlp_ext/_build_info.py mlp_ext/_C.*.so $(BUILT)

distclean: clean
	rm -rf $(VENV)

# ---- set-up, each step once

$(VENV_READY):
	$(call say,Making the environment $(VENV) with $(PYTHON))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "'$(PYTHON)' is no Python 3.10 or later; name one: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "'$(PYTHON)' lacks the venv module (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade "pip>=25.1" "setuptools>=77.0.3" wheel ninja
	@touch $@

$(TORCH_READY): | $(VENV_READY)
	$(call say,Installing torch $(TORCH): 200 MB for the CPU build and several GB for a CUDA build)
	$(PIP) install "torch==$(TORCH)" numpy
	@rm -f $(VENV)/.stamp-torch-* && touch $@

$(BUILT): $(BUILD_INPUTS) $(TORCH_READY)
	$(call say,Compiling the extension in place (from nothing: a minute or two))
	@PYTHONWARNINGS="ignore:Editable installation" \
	    $(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# The installed mlp_ext meets its own requirement, so this fetches only what the extra adds, and
# torch is named again so that nothing among it can bring another one.
$(VENV)/.stamp-extra-%: pyproject.toml | $(BUILT)
	$(call say,Installing what '$*' needs)
	$(PIP) install --quiet "mlp_ext[$*]" "torch==$(TORCH)"
	@touch $@

$(VENV)/.stamp-lint: pyproject.toml | $(VENV_READY)
	$(call say,Installing ruff and clang-format and mypy)
	$(PIP) install --quiet --group lint
	@touch $@
