# Everything installs into .venv/; nothing else on the machine is needed but Python 3.11+ and make.

PYTHON ?= python3
BIN := .venv/bin
export DAGSTER_HOME ?= $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help celery demo dev serve test bench chaos lint format requirements docs clean

help:  ## show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: .venv/installed  ## mirror several hundred photographs on the embedded defaults, and prove it
	@$(BIN)/cdn-pipeline demo

dev: .venv/installed  ## open Dagster's UI on the demo's data
	@$(BIN)/cdn-pipeline dev

serve: .venv/installed  ## the API and renditions of a local store on port 8000
	@$(BIN)/cdn-pipeline serve

test: .venv/installed  ## run the tests (on two processes)
	@$(BIN)/pytest -n 2 --dist loadfile $(PYTEST_ARGS)

bench: .venv/installed  ## measure against the limit and against peers, about two hours; writes docs/performance.md
	@$(BIN)/python -m benchmarks

chaos: .venv/installed  ## twenty-one disasters in a small world, and what came back
	@$(BIN)/python -m benchmarks.chaos

lint: .venv/installed  ## format check, lint, types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv/installed  ## format and mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

celery: .venv/installed  ## install the extra for warm Celery workers (docs/deploy.md)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/celery.txt

docs: .venv/installed  ## write the generated parts of docs/
	@$(BIN)/python docs/generate.py

clean:  ## forget the demo and Dagster's history on this machine
	rm -rf var history schedules storage logs .logs_queue .telemetry .nux .tmp_dagster_home_*

# Exact versions with hashes; the project itself without dependencies, built by the pinned back end.
.venv/installed: pyproject.toml requirements/dev.txt requirements/photos.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cdn_pipeline needs Python 3.11 or newer; set PYTHON=…"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/dev.txt -r requirements/photos.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-strip-extras

requirements: .venv/installed  ## pin the newest versions that pyproject.toml allows
	$(BIN)/pip install --quiet uv
	$(UV_COMPILE) --upgrade --extra dev pyproject.toml -o requirements/dev.txt
	$(UV_COMPILE) pyproject.toml -c requirements/dev.txt -o requirements/runtime.txt
	$(UV_COMPILE) --upgrade --extra celery pyproject.toml -c requirements/dev.txt -o requirements/celery.txt
	$(UV_COMPILE) --upgrade --no-deps requirements/photos.in -o requirements/photos.txt
