# Every target does its own set-up: an environment in .venv, torch, the extension compiled in place.
# Stamp files in .venv remember what is done, so that a second run repeats only what has changed.
#
#   make test ARGS="-k adam -x"             arguments for pytest, the demo or the benchmarks
#   make test JOBS=0 ARGS="-s"              all tests in one process, which may print and debug
#   make test TORCH=2.12.0                  another torch
#   make test PYTHON=python3.12             another Python, after `make distclean`
#   make test CC=clang-14 CXX=clang++-14    another compiler, after `make clean`

PYTHON     ?= python3
TORCH      ?= 2.13.0
TORCH_CUDA ?= 2.14.1
ARGS       ?=
# Tests at a time, each a process of about 1 GB: one a core, 8 at most.
JOBS       ?= $(shell n=$$(nproc 2>/dev/null || echo 1); echo $$((n < 8 ? n : 8)))

SHELL := bash
.SHELLFLAGS := -o pipefail -c

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := -m pytest --numprocesses $(JOBS) --dist worksteal
say   = @printf '\n==> %s\n' "$(1)"

# By setup.py first, whose progress is seen, as pip's is not; then pip has nothing left to compile.
compile_in_place = { mkdir -p build && \
    { $(1) setup.py build_ext --inplace > build/compile.log || { tail -n 60 build/compile.log; exit 1; }; } \
    && PYTHONWARNINGS="ignore:Editable installation" $(1) -m pip --disable-pip-version-check install \
        -qq --no-build-isolation --no-deps --editable . ; }

# What PyPI gives for check-cuda: nvcc and, many times its size, a CUDA build of torch.
CUDA_VENV := .venv-cuda
CUDA_PIP  := $(CUDA_VENV)/bin/python -m pip --disable-pip-version-check
# The search for nvcc starts at PyPI's, the release that tests/cuda/budgets.toml is made with.
PIP_CUDA   = CUDA_HOME="$$(ls -d $(CURDIR)/$(CUDA_VENV)/lib/python*/site-packages/nvidia/cu13)"

# All of csrc, headers too: the stamp only decides whether to call ninja, and ninja knows which
# object depends on which header.
BUILD_INPUTS := setup.py pyproject.toml $(shell find csrc -type f ! -name '*.pyc')
VENV_READY   := $(VENV)/.stamp-venv
TORCH_READY  := $(VENV)/.stamp-torch-$(TORCH)
BUILT        := $(VENV)/.stamp-built

.PHONY: help demo test bench bench-build lint docs wheel clean distclean
.PHONY: check-asan check-cuda check-cuda-all check-cuda-static check-cuda-kernels check-cuda-host
.PHONY: check-cuda-stand-in check-cuda-build cuda-suite
.DELETE_ON_ERROR:

help:
	@echo "make demo        train on MNIST digits, plain PyTorch against mlp_ext: a table and a picture"
	@echo "make test        run the test suite (the CUDA kernels' own tests are check-cuda's)"
	@echo "make bench       run the short benchmark suite"
	@echo "make bench-build what a build from nothing costs"
	@echo "make check-asan  the CPU extension under the address and undefined-behaviour sanitizers, in"
	@echo "                 random training programs (15 minutes on two cores)"
	@echo "make check-cuda  build against a CUDA build of torch (5 GB), compare what the kernels use with"
	@echo "                 their budgets, run them on the CPU under the address sanitizer, and the public"
	@echo "                 API on them; needs no GPU, no CUDA"
	@echo "make check-cuda-all  on every arch, in every schedule, under the thread sanitizer too, with every"
	@echo "                 planted fault, all tests: before a change of CUDA code is called done (hours)"
	@echo "make lint        ruff, clang-format, mypy (needs no compiler)"
	@echo "make docs        build the site with the API reference into build/site (needs no compiler)"
	@echo "make wheel       build a wheel into dist/"
	@echo "make clean       remove what was compiled; make distclean removes the environments as well"

demo: $(VENV)/.stamp-extra-demo
	$(BIN)/python examples/mnist.py $(ARGS)

# tests/simt, which compiles CUDA's kernels for the CPU, is check-cuda's.
test: $(VENV)/.stamp-extra-test
	$(BIN)/python $(PYTEST) tests --ignore=tests/simt $(ARGS)

bench: $(VENV)/.stamp-extra-bench
	$(BIN)/python -m benchmarks $(ARGS)

# CPU seconds of a build from nothing, in units of a file that only includes torch's headers.
bench-build: $(TORCH_READY)
	$(BIN)/python -m benchmarks.build $(ARGS)

lint: $(VENV)/.stamp-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu' \) -print0 \
	    | xargs -0 -r $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy

# A warning is an error: a broken link, a parameter that is documented and does not exist.
docs: $(VENV)/.stamp-docs
	$(BIN)/python docs/_site.py build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean
	@echo "The site: build/site/index.html"

# build/lib* is emptied first: setuptools never removes from it a module that is gone from mlp_ext/.
wheel: $(TORCH_READY)
	rm -rf build/lib*
	$(PIP) wheel -qq --no-build-isolation --no-deps --wheel-dir dist .
	@ls -l dist/*.whl

# The CPU extension under the sanitizers, in a copy of the tree, as for CUDA below: random training
# programs beside plain PyTorch, and the tests of what else a program may do to a TrainStep. -O1, which
# costs fewest minutes. Leaks are not asked for: Python and torch have thousands.
#   make check-asan ASAN_CASES=20000
ASAN_CASES ?= 2000
ASAN_FLAGS := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=vptr \
    -fno-sanitize-recover=undefined
run_sanitized = cd build/asan && \
    LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:allow_user_segv_handler=0 \
    UBSAN_OPTIONS=print_stacktrace=1 $(CURDIR)/$(BIN)/python

check-asan: $(VENV)/.stamp-extra-test
	$(call say,Compiling the CPU extension with sanitizers in build/asan)
	@mkdir -p build/asan && find build/asan -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
	@cp -a pyproject.toml setup.py csrc mlp_ext tests build/asan
	@rm -f build/asan/mlp_ext/_C.*.so build/asan/mlp_ext/_build_info.py
	@cd build/asan && mkdir -p build && MLP_EXT_CUDA=0 CXXFLAGS="$(ASAN_FLAGS)" \
	    $(CURDIR)/$(BIN)/python setup.py build_ext --inplace > build/compile.log 2>&1 \
	    || { tail -n 60 build/compile.log; exit 1; }
	$(run_sanitized) -m tests.faults.differential --cases $(ASAN_CASES) \
	    --processes $$(( $(JOBS) > 1 ? $(JOBS) : 1 ))
	$(run_sanitized) -m pytest --quiet tests/test_train_step_threats.py tests/test_memory.py $(ARGS)

# What continuous integration runs. Each .cu is compiled once: the gates read the build's objects.
check-cuda: check-cuda-build check-cuda-kernels check-cuda-stand-in

# What else there is to find out without a GPU.
check-cuda-all: check-cuda-static check-cuda-host
	@$(MAKE) --no-print-directory check-cuda-build CUDA_TESTS='$(ALL_CUDA_TESTS)'

# The kernels as fibers on this CPU, under the address sanitizer.
check-cuda-kernels: $(VENV)/.stamp-extra-test
	SIMT_FLAVOURS=address $(BIN)/python $(PYTEST) tests/simt/test_on_host.py $(ARGS)

# The tests of the public API on CUDA's code: what there is for both devices. Left out: the CPU's own
# (instruction sets, TrainStep's compiled core), sizes that take fibers minutes, and what is another
# error on CUDA (class indices out of range) or needs tensors that say they are on it.
STAND_IN := build/simt/stand-in
STAND_IN_CORE := mlp linear cross_entropy elementwise_losses optim clip_grad_norm
STAND_IN_ALL := $(STAND_IN_CORE) autograd nn transforms functional_transforms \
    dispatch_subclasses fusion surgery cross_entropy_forms loss_forms loss_modules optim_api \
    optim_database optim_limits optim_masters optim_reference opcheck numerics
STAND_IN_CUDA := losses optim library
run_stand_in = cd $(STAND_IN) && PYTHONPATH=$(CURDIR)/$(STAND_IN) MLP_EXT_TEST_DEVICE=cpu \
    $(CURDIR)/$(BIN)/python $(PYTEST) -c $(CURDIR)/pyproject.toml --best-isa \
    -k "not K1030 and not longest_sum and not (test_linear.py and same_bits) \
    and not (test_optim_limits.py and capturable) \
    and not (test_numerics.py and (4099 or K2048))" \
    $(patsubst %,$(CURDIR)/tests/test_%.py,$(1)) \
    $(patsubst %,$(CURDIR)/tests/cuda/test_%_cuda.py,$(STAND_IN_CUDA)) $(ARGS)

check-cuda-stand-in: $(STAND_IN)/.stamp
	$(call run_stand_in,$(STAND_IN_CORE))

# All schedules, both sanitizers, every planted fault, all tests.
check-cuda-host: $(VENV)/.stamp-extra-test $(STAND_IN)/.stamp
	SIMT_FLAVOURS=plain,address,thread SIMT_FAULTS=all $(BIN)/python $(PYTEST) tests/simt $(ARGS)
	$(call run_stand_in,$(STAND_IN_ALL))

$(STAND_IN)/.stamp: $(BUILD_INPUTS) $(wildcard tests/simt/*) | $(VENV)/.stamp-extra-test
	$(call say,Compiling the CUDA half for the CPU in $(STAND_IN))
	@mkdir -p $(STAND_IN)
	@$(BIN)/python tests/simt/stand_in.py > build/simt/stand-in.log 2>&1 \
	    || { cat build/simt/stand-in.log; exit 1; }
	@touch $@

# Static gates on every arch: seconds a kernel, kept in build/cuda-gates; then the gates' own tests.
#   make check-cuda-static GATES_ARGS="--table kernels.md"
check-cuda-static: $(CUDA_VENV)/.stamp-venv
	@$(MAKE) --no-print-directory $(CUDA_VENV)/.stamp-nvcc \
	    || echo "==> no nvcc from PyPI; looking for one of this machine"
	@if test -e $(CUDA_VENV)/.stamp-nvcc; then \
	    export $(PIP_CUDA) && $(CUDA_VENV)/bin/python tests/cuda/gates.py $(GATES_ARGS) \
	        && $(CUDA_VENV)/bin/python -m pytest --quiet --noconftest tests/cuda/test_gates.py; \
	else \
	    $(CUDA_VENV)/bin/python tests/cuda/gates.py $(GATES_ARGS); \
	fi

# Two steps, so that a download that fails is not an error, and a build that fails is.
check-cuda-build: $(CUDA_VENV)/.stamp-venv
	@if $(MAKE) --no-print-directory $(CUDA_VENV)/.stamp-torch-$(TORCH_CUDA); then \
	    $(MAKE) --no-print-directory cuda-suite; \
	else \
	    echo "SKIPPED: the build against a CUDA build of torch, which could not be installed."; \
	fi

# That it loads and trains. make test runs the same code's tests, check-cuda-all in this build too.
CUDA_TESTS ?= tests/test_nn.py tests/test_train_step_use.py tests/test_optim_reference.py
ALL_CUDA_TESTS := tests --ignore=tests/clients --ignore=tests/cuda --ignore=tests/simt \
    $(patsubst %,--ignore=%,$(wildcard tests/test_benchmark*.py)) \
    $(addprefix --ignore=tests/test_,examples.py guides.py docs.py)

# In a copy of the tree, because there is place for one extension only in mlp_ext/. `cp -a` keeps the
# times by which ninja knows what to compile. nvcc's warnings are errors.
cuda-suite:
	$(call say,Compiling the extension for torch $(TORCH_CUDA) in build/cuda)
	@mkdir -p build/cuda && find build/cuda -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
	@cp -a .pre-commit-config.yaml *.md *.in LICENSE Makefile pyproject.toml setup.py \
	    benchmarks csrc docs examples mlp_ext tests build/cuda
	@rm -f build/cuda/mlp_ext/_C.*.so build/cuda/mlp_ext/_build_info.py
	cd build/cuda && export $(PIP_CUDA) MLP_EXT_CUDA=$(if $(filter %.cu,$(BUILD_INPUTS)),1) \
	    NVCC_APPEND_FLAGS="-Werror all-warnings" && \
	    $(call compile_in_place,../../$(CUDA_VENV)/bin/python)
	export $(PIP_CUDA) && $(CUDA_VENV)/bin/python tests/cuda/gates.py --built build/cuda/build
	export $(PIP_CUDA) && $(CUDA_VENV)/bin/python -m pytest --quiet --noconftest \
	    tests/cuda/test_gates.py -k objects_of_a_build
	cd build/cuda && ../../$(CUDA_VENV)/bin/python -m mlp_ext
	cd build/cuda && ../../$(CUDA_VENV)/bin/python $(PYTEST) --best-isa $(CUDA_TESTS) $(ARGS)

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	rm -f mlp_ext/_build_info.py mlp_ext/_C.*.so $(BUILT)

distclean: clean
	rm -rf $(VENV) $(CUDA_VENV)

# ---- set-up, each step once

$(VENV_READY) $(CUDA_VENV)/.stamp-venv:
	$(call say,Making the environment $(@D) with $(PYTHON))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "'$(PYTHON)' is no Python 3.10 or later; name one: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "'$(PYTHON)' lacks the venv module (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install -qq --upgrade \
	    "pip>=25.1" "setuptools>=77.0.3" wheel ninja
	@touch $@

$(TORCH_READY): | $(VENV_READY)
	$(call say,Installing torch $(TORCH): 200 MB for the CPU build and several GB for a CUDA build)
	$(PIP) install "torch==$(TORCH)" numpy 2>&1 | sed -u '/^WARNING: Location/d'
	@rm -f $(VENV)/.stamp-torch-* && touch $@

$(BUILT): $(BUILD_INPUTS) $(TORCH_READY)
	$(call say,Compiling the extension in place (from nothing: two to four minutes on two cores))
	@$(call compile_in_place,$(BIN)/python)
	@touch $@

# The installed mlp_ext meets its own requirement, so this fetches only what the extra adds, and
# torch is named again so that nothing among it can bring another one.
$(VENV)/.stamp-extra-%: pyproject.toml | $(BUILT)
	$(call say,Installing what '$*' needs)
	$(PIP) install -qq "mlp_ext[$*]" "torch==$(TORCH)"
	@touch $@

$(VENV)/.stamp-lint: pyproject.toml | $(VENV_READY)
	$(call say,Installing ruff and clang-format and mypy)
	$(PIP) install -qq --group lint
	@touch $@

$(VENV)/.stamp-docs: pyproject.toml | $(VENV_READY)
	$(call say,Installing what builds the site)
	$(PIP) install -qq --group docs
	@touch $@

$(CUDA_VENV)/.stamp-nvcc: pyproject.toml | $(CUDA_VENV)/.stamp-venv
	$(call say,Installing nvcc: 150 MB)
	$(CUDA_PIP) install -qq --group cuda
	@touch $@

# With the group again, so that nvcc and torch are of one CUDA.
$(CUDA_VENV)/.stamp-torch-$(TORCH_CUDA): pyproject.toml | $(CUDA_VENV)/.stamp-venv
	$(call say,Installing torch $(TORCH_CUDA) with CUDA: several GB)
	$(CUDA_PIP) install -qq "torch==$(TORCH_CUDA)" numpy --group cuda
	@$(CUDA_VENV)/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' || { \
	    echo "PyPI has no CUDA build of torch $(TORCH_CUDA) for this machine"; exit 1; }
	@rm -f $(CUDA_VENV)/.stamp-torch-* && touch $(CUDA_VENV)/.stamp-nvcc $@
