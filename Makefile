# Every target installs what it needs: `make test` and `make demo` work in a fresh clone.

PYTHON ?= python3
MINUTES ?= 5

VENV := .venv
PY := $(VENV)/bin/python
BEAM := .venv-beam
APP := .venv-app
LIBTPU := .libtpu
XLA_GPU := .xla_gpu
RUN := runs/demo
VERSION := $(shell $(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null)
READY := $(VENV)/.installed
EXTRAS := $(VENV)/.extras
RESOLVE := $(PY) -m uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
  --no-annotate --no-header --no-emit-index-url -c requirements-extras.txt

# Without the cache of compiled modules, every start would wait for TensorFlow.
unexport PYTHONDONTWRITEBYTECODE

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /  make \1\t/p' Makefile | expand -t 20

setup: $(READY)  ## install the pinned requirements into .venv/, if they have changed

# An environment of another Python version is replaced.
$(VENV)/.python-$(VERSION):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $(PYTHON) is $(or $(VERSION),missing) and must be Python 3.11, 3.12 or 3.13;" \
	    "name another, as in: make setup PYTHON=python3.12" >&2; exit 2; }
	@rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Compiling modules on first import is faster than compiling all of them now.
$(READY): $(VENV)/.python-$(VERSION) requirements.txt requirements-dev.txt
	@echo "Installing the pinned requirements into $(VENV)/ (1 to 3 minutes, 2.5 GB)"
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-dev.txt
	@touch $@

test: $(READY)  ## run the quick tests, on two processes
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)  ## run the tests that take minutes each
	$(PY) -m pytest -q -m slow

# It begins with the tests of the tool.
mutants: $(READY)  ## change the core one place at a time, and count what the quick tests see; takes hours
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-mutants.txt
	$(PY) -m pytest -q tests/benchmarks/test_mutants.py
	$(PY) -m benchmarks.mutants

coverage: $(READY)  ## list the lines that `make test` does not reach; takes twice as long
	rm -rf .coverage && mkdir .coverage
	$(PY) -m coverage run -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report

$(EXTRAS): $(READY) requirements-extras.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-extras.txt
	@# torchscale asks for an old timm; its BEiT3 needs nothing of that.
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile --no-deps torchscale==0.3.0
	@# Where transformers finds timm it asks for torchvision, which fits one build of torch only.
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --upgrade --target $(VENV)/timm timm==1.0.31
	@touch $@

extras: $(EXTRAS)  ## run the tests that need optional packages (torch, transformers, ...)
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "extras and not slow" $$(grep -rl --include="test_*.py" mark.extras tests)

$(VENV)/.docs: $(READY) requirements-docs.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-docs.txt
	@touch $@

docs: $(VENV)/.docs  ## build the documentation into site/; broken links and undocumented names fail
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	@echo "Open site/index.html, or run $(PY) -m mkdocs serve"

# Apache Beam requires older versions of shared dependencies, hence a separate environment.
$(BEAM)/.installed: requirements-beam.txt
	@rm -rf $(BEAM)
	$(PYTHON) -m venv $(BEAM)
	$(BEAM)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-beam.txt
	@touch $@

beam: $(BEAM)/.installed  ## run the tests on Apache Beam, in .venv-beam/
	$(BEAM)/bin/python -m pytest -q -m beam tests/prepare/test_prepare_scale.py

# Gradio requires an older Pillow and a newer huggingface-hub, hence a separate environment.
$(APP)/.installed: requirements-app.txt
	@rm -rf $(APP)
	$(PYTHON) -m venv $(APP)
	$(APP)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-app.txt
	@touch $@

app: $(APP)/.installed  ## run the tests of the web app, in .venv-app/
	$(APP)/bin/python -m pytest -q -m app tests/app/test_app.py tests/app/test_app_browser.py

# The model of runs/demo/ if there is one, else the one in the package.
page: $(APP)/.installed  ## open a model in the browser
	$(APP)/bin/python -m mail_jax.app $(if $(wildcard $(RUN)/checkpoints),--checkpoint $(RUN),--demo)

# JAX searches for chips wherever it can import these, so they are on the path for their tests only.
$(LIBTPU)/.installed: $(READY) requirements-plan.txt
	@rm -rf $(LIBTPU)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --target $(LIBTPU) -r requirements-plan.txt
	@touch $@

$(XLA_GPU)/.installed: $(READY) requirements-plan-gpu.txt
	@rm -rf $(XLA_GPU)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --target $(XLA_GPU) -r requirements-plan-gpu.txt
	@touch $@

plan: plan-tpu plan-gpu  ## run the tests with the compilers of TPUs and GPUs

plan-tpu: $(LIBTPU)/.installed  ## the same with that of TPUs, in .libtpu/ (700 MB)
	PYTHONPATH=$(LIBTPU) $(PY) -m pytest -q -m "plan and not slow" $$(grep -rl --include="test_*.py" mark.plan tests)

plan-gpu: $(XLA_GPU)/.installed  ## the same with that of GPUs, in .xla_gpu/ (1.3 GB)
	PYTHONPATH=$(XLA_GPU) $(PY) -m pytest -q -m "plan and not slow" tests/plan/test_plan_gpus.py

# With the newest versions that pyproject.toml allows, from a copy: the clone stays clean.
package:  ## install the package as users do and run --help of every command
	PYTHON=$(PYTHON) tests/installed.sh

lint: $(READY)  ## run ruff, codespell and pyright; check import rules and idiom
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(VENV)/bin/codespell
	$(PY) tests/support/habits.py
	$(VENV)/bin/lint-imports --no-logo --no-cache
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath $(PY)

# On a CPU, one device per core trains faster than one device on all cores, and huge pages spare XLA's
# buffers most page faults (docs/reports/results.md).
CORES := $(shell $(PYTHON) -c 'import os; print(1 << min(os.cpu_count() or 1, 16).bit_length() - 1)' 2>/dev/null)
FAST := GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
  XLA_FLAGS="--xla_force_host_platform_device_count=$(CORES) --xla_cpu_multi_thread_eigen=false $$XLA_FLAGS"

# Five minutes are to be over eight minutes after the clone: they evaluate on val alone.
BRIEF := $(filter 1 2 3 4 5,$(MINUTES))
SPLITS := $(if $(BRIEF),val,val testA testB testC)

demo: demo-plan $(READY)  ## draw scenes, train for MINUTES=5 on them, evaluate; results in runs/demo/
	$(PY) -m input_pipeline.prepare --dataset shapes --data_dir data
	$(FAST) $(PY) -m mail_jax.train --config configs/demo.py --config.minutes=$(MINUTES) \
	  $(if $(BRIEF),--config.eval_expressions=1000) --data_dir data --workdir $(RUN) --archive_existing
	$(FAST) $(PY) -m mail_jax.evaluate --checkpoint $(RUN) --data_dir data \
	  $(SPLITS:%=--data shapes/%) \
	  --json $(RUN)/metrics.json --per_expression $(RUN)/samples.jsonl --overlays $(RUN)/overlays.png
	$(PY) -m mail_jax.report $(RUN) --data_dir data --per_expression $(RUN)/samples.jsonl
	@echo "Open $(RUN)/report.html in a browser; the numbers are in $(RUN)/metrics.json."

demo-plan:
	@echo "1. Install (1 to 3 minutes, once), 2. draw 18,000 scenes (1 minute, once), 3. train for" \
	  "$(MINUTES) minutes, 4. evaluate (1 minute). Open $(RUN)/progress.png a minute after training began;" \
	  "it is redrawn as the model learns. $(RUN)/report.html comes at the end."

demo-package:  ## put the model of `make demo MINUTES=15` into the package, mail_jax/demo/
	$(PY) -m mail_jax.export --checkpoint $(RUN) --out mail_jax/demo --overwrite --precision float16 \
	  --metrics $(RUN)/metrics.json --license apache-2.0

# Each file pins what its extra adds to requirements.txt, which has colorama for Windows only. The
# comments at the top of a file are kept.
pins: $(READY)  ## pin the newest versions that pyproject.toml allows in requirements*.txt
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(RESOLVE) --upgrade -o $(VENV)/pins
	grep '^[#-]' requirements.txt | cat - $(VENV)/pins > $(VENV)/all && mv $(VENV)/all requirements.txt
	for extra in dev docs cuda tpu; do \
	  $(RESOLVE) --upgrade --extra $$extra -c requirements.txt -o $(VENV)/pins \
	    $$(sed -n "/^colorama==/d; s/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p" requirements.txt) && \
	  grep '^[#-]' requirements-$$extra.txt | cat - $(VENV)/pins > $(VENV)/all && \
	  mv $(VENV)/all requirements-$$extra.txt || exit; \
	done

clean:  ## remove environments and caches; keeps data/ and runs/
	rm -rf $(VENV) $(BEAM) $(APP) $(LIBTPU) $(XLA_GPU) site .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup test test-slow mutants coverage extras beam app page plan plan-tpu plan-gpu package lint docs demo demo-plan demo-package pins clean
