# `make` or `make help` lists the targets.

PYTHON ?= python3
UV_VERSION := 0.13.9
PORT ?= 5000
# dvc runs the stages with the first `python` on PATH.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup repro test lint ui lock clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: .venv/complete ## Make .venv from requirements.lock (the other targets do it when needed)

.venv/complete: requirements.lock | .venv/bin/uv
	.venv/bin/uv pip install --python .venv/bin/python --require-hashes --compile-bytecode \
		--requirement requirements.lock
	@touch $@

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

repro: .venv/complete ## Run the pipeline: only what has changed runs again
	.venv/bin/dvc repro

test: .venv/complete lint ## Check style and types, run every test
	.venv/bin/pytest --cov --cov-fail-under=90

lint: .venv/complete ## Check style and types only
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

ui: .venv/complete ## Browse the runs at http://127.0.0.1:5000 (make ui PORT=5001 for another port)
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
		.venv/bin/mlflow server --workers 1 \
		--backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $(PORT)

lock: .venv/bin/uv ## Write requirements.lock anew from pyproject.toml, with the newest versions that fit
	.venv/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make lock" --output-file requirements.lock --quiet

clean: ## Remove what can be made again: .venv, caches of tools (results and MLflow's runs stay)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .coverage .coverage.*
