# Every target sets itself up: `make test` or `make demo` is all a fresh clone needs.

PYTHON ?= python3
MINUTES ?= 15

VENV := .venv
PY := $(VENV)/bin/python
BEAM := .venv-beam
APP := .venv-app
LIBTPU := .libtpu
RUN := runs/demo
VERSION := $(shell $(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null)
READY := $(VENV)/.installed
EXTRAS := $(VENV)/.extras
RESOLVE := $(PY) -m uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
  --no-annotate --no-header --no-emit-index-url -c requirements-extras.txt

# Whoever has turned the cache of compiled modules off would wait for TensorFlow at every start.
unexport PYTHONDONTWRITEBYTECODE

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /  make \1\t/p' Makefile | expand -t 20

setup: $(READY)  ## .venv/ with the pinned requirements; nothing to do when nothing changed

# A folder made with another Python is replaced; its name says with which one it was made.
$(VENV)/.python-$(VERSION):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $(PYTHON) is $(or $(VERSION),missing) and must be Python 3.11, 3.12 or 3.13;" \
	    "name one that is, as in: make setup PYTHON=python3.12" >&2; exit 2; }
	@rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Compiling as modules are first imported is quicker than compiling all of them now.
$(READY): $(VENV)/.python-$(VERSION) requirements.txt requirements-dev.txt
	@echo "Installing the pinned requirements into $(VENV)/ (1 to 3 minutes, 2.5 GB)"
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-dev.txt
	@touch $@

test: $(READY)  ## the tests that take minutes together, on two processes
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)  ## the tests that take minutes each
	$(PY) -m pytest -q -m slow

coverage: $(READY)  ## which lines the tests of `make test` do not reach; twice their time
	rm -rf .coverage && mkdir .coverage
	$(PY) -m coverage run -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report

$(EXTRAS): $(READY) requirements-extras.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-extras.txt
	@touch $@

extras: $(EXTRAS)  ## the tests that need what is not required (torch, transformers, ...), which this installs
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "extras and not slow" $$(grep -rl --include="test_*.py" mark.extras tests)

$(VENV)/.docs: $(READY) requirements-docs.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-docs.txt
	@touch $@

docs: $(VENV)/.docs  ## the documentation as a site, in site/; a broken link or an undocumented name fails
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	@echo "Open site/index.html, or run $(PY) -m mkdocs serve"

# Apache Beam asks for older versions of what the other packages share, so it has an environment of its own.
$(BEAM)/.installed: requirements-beam.txt
	@rm -rf $(BEAM)
	$(PYTHON) -m venv $(BEAM)
	$(BEAM)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-beam.txt
	@touch $@

beam: $(BEAM)/.installed  ## the tests on Apache Beam, which this installs apart
	$(BEAM)/bin/python -m pytest -q -m beam tests/prepare/test_prepare_scale.py

# Gradio asks for an older Pillow and a newer huggingface-hub, so it has an environment of its own, too.
$(APP)/.installed: requirements-app.txt
	@rm -rf $(APP)
	$(PYTHON) -m venv $(APP)
	$(APP)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-app.txt
	@touch $@

app: $(APP)/.installed  ## the tests of the page, with Gradio, which this installs apart (.venv-app/)
	$(APP)/bin/python -m pytest -q -m app tests/app/test_app.py tests/app/test_app_browser.py

page: $(APP)/.installed  ## the demo's model in the browser
	$(APP)/bin/python -m mail_jax.app --checkpoint $(RUN)

# JAX looks for chips wherever it can import libtpu, so only who asks for it has it on the path.
$(LIBTPU)/.installed: $(READY) requirements-plan.txt
	@rm -rf $(LIBTPU)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --target $(LIBTPU) -r requirements-plan.txt
	@touch $@

plan: $(LIBTPU)/.installed  ## the tests with the TPU compiler, which this installs apart (700 MB)
	PYTHONPATH=$(LIBTPU) $(PY) -m pytest -q -m "plan and not slow" $$(grep -rl --include="test_*.py" mark.plan tests)

# With the newest versions that pyproject.toml allows, not the pinned ones, and from a copy: nothing is left in the clone.
package:  ## installs it as users do, in an environment of its own, and asks every command for help
	PYTHON=$(PYTHON) tests/installed.sh

lint: $(READY)  ## ruff, pyright and codespell
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(VENV)/bin/codespell
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath $(PY)

contracts: $(READY)  ## what may import what, as pyproject.toml has it
	$(VENV)/bin/lint-imports --no-logo --no-cache

habits: $(READY)  ## phrases that are not English, with what to write instead
	$(PY) tests/support/habits.py

# On a CPU, one device a core trains faster than one device on all cores; huge pages spare XLA's buffers most of their
# page faults. Both only matter on a CPU (docs/reports/results.md).
CORES := $(shell $(PYTHON) -c 'import os; print(1 << min(os.cpu_count() or 1, 16).bit_length() - 1)' 2>/dev/null)
FAST := GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
  XLA_FLAGS="--xla_force_host_platform_device_count=$(CORES) --xla_cpu_multi_thread_eigen=false $$XLA_FLAGS"

demo: $(READY)  ## generated scenes: prepare, train for MINUTES=15, evaluate; results in runs/demo/
	$(PY) -m input_pipeline.prepare --dataset shapes --data_dir data
	$(FAST) $(PY) -m mail_jax.train --config configs/demo.py --config.minutes=$(MINUTES) \
	  --data_dir data --workdir $(RUN) --archive_existing
	$(PY) -m mail_jax.evaluate --checkpoint $(RUN) --data_dir data \
	  --data shapes/val --data shapes/testA --data shapes/testB --data shapes/testC \
	  --json $(RUN)/metrics.json --per_expression $(RUN)/samples.jsonl --overlays $(RUN)/overlays.png
	$(PY) -m mail_jax.report $(RUN) --data_dir data --per_expression $(RUN)/samples.jsonl
	@echo "Open $(RUN)/report.html in a browser; the numbers are in $(RUN)/metrics.json."

# Each file has what its extra adds to requirements.txt, where colorama is for Windows only; its first lines, which say what
# it is for, stay.
pins: $(READY)  ## the newest versions that pyproject.toml allows, with their hashes, into requirements*.txt
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(RESOLVE) --upgrade -o $(VENV)/pins
	grep '^[#-]' requirements.txt | cat - $(VENV)/pins > $(VENV)/all && mv $(VENV)/all requirements.txt
	for extra in dev docs cuda tpu; do \
	  $(RESOLVE) --upgrade --extra $$extra -c requirements.txt -o $(VENV)/pins \
	    $$(sed -n "/^colorama==/d; s/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p" requirements.txt) && \
	  grep '^[#-]' requirements-$$extra.txt | cat - $(VENV)/pins > $(VENV)/all && \
	  mv $(VENV)/all requirements-$$extra.txt || exit; \
	done

clean:  ## removes environments and caches; data/ and runs/ stay
	rm -rf $(VENV) $(BEAM) $(APP) $(LIBTPU) site .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup test test-slow coverage extras beam app page plan package lint contracts habits docs demo pins clean
