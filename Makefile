# `make` or `make help` lists the targets.

PYTHON ?= python3
UV_VERSION := 0.13.9
HOST ?= 127.0.0.1
PORT ?= 5000
ARTIFACTS ?= mlartifacts
SERVICE := $(if $(filter command% env%,$(origin PORT)),$(PORT),8000)
# One worker and no job runner: 490 MB, up in 7 s; mlflow's defaults take 1.3 GB and 20 s.
MLFLOW_SERVER := MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/mlflow server --workers 1
# dvc runs the stages with the first `python` on PATH.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup repro check test stress coverage lint bench plots experiments ui serve demo server wheel lock clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: .venv/complete ## Create .venv from requirements.lock (other targets do so when needed)

.venv/complete: requirements.lock | .venv/bin/uv
	.venv/bin/uv pip install --python .venv/bin/python --require-hashes --compile-bytecode \
		--requirement requirements.lock
	@.venv/bin/python -c 'import vl_convert; print(vl_convert.javascript_bundle(vl_version="5.21"))' > .venv/vega.js
	@touch $@

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

repro: .venv/complete ## Run the pipeline: only what has changed is rerun
	@.venv/bin/python -m digits repair
	.venv/bin/dvc repro
	@.venv/bin/python -m digits verify
	@.venv/bin/python -m digits summary

check: .venv/complete lint ## Check style and types, run the fast tests: under 3 minutes on two cores
	.venv/bin/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m 'not slow and not stress'

# Style and types are checked beside the tests, which wait for servers and for each other a third of the time.
test: .venv/complete ## Check style and types, run all tests but those of make stress: under 15 minutes on two cores
	@$(MAKE) --no-print-directory lint >.venv/lint.log 2>&1 & lint=$$!; \
	.venv/bin/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m 'not stress'; tests=$$?; \
	wait $$lint; lint=$$?; cat .venv/lint.log; exit $$((tests + lint))

DAMAGED ?= 10000
KILLS ?= 100

stress: .venv/complete ## Damage 10,000 files of each kind, kill 100 times, queue 50 experiments (hours)
	.venv/bin/pytest --numprocesses 2 tests/test_damaged.py tests/images/test_own.py --damaged $(DAMAGED)
	.venv/bin/pytest tests/pipeline/test_kill.py --kills $(KILLS)
	.venv/bin/pytest -m stress
	.venv/bin/python -m benchmarks.soak

coverage: .venv/complete ## Run every test and list the lines that none reaches
	.venv/bin/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m 'not stress' --cov --cov-report term-missing:skip-covered --cov-fail-under 90

lint: .venv/complete ## Check style and types only
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

# One seed of what others train, not the three and two of the program itself: each takes up to 5 minutes.
bench: quick := $(if $(QUICK),--quick)
bench: repro ## Measure accuracy, speed and cost: under an hour on two idle cores, or make bench QUICK=1
	.venv/bin/python -m benchmarks.accuracy --tutorial-seeds 1 --example-seeds 1 $(quick)
	.venv/bin/python -m benchmarks.limits $(quick)
	.venv/bin/python -m benchmarks.stages $(quick)
	.venv/bin/python -m benchmarks.growth $(quick)
	.venv/bin/python -m benchmarks.checkpointing $(quick)
	.venv/bin/python -m benchmarks.portable --processors $(quick)

plots: .venv/complete ## Draw the plots of this folder, or of several: make plots REVISIONS="main slower"
	@.venv/bin/python -m digits plots $(REVISIONS)

# Of the metrics those that decide, of the params those that differ between the rows, and no files.
experiments: .venv/complete ## List the experiments, newest first: what they changed and reached
	@.venv/bin/dvc exp show --no-pager --only-changed \
		--drop '^(?!(recipe|seed|(data|split|model|train|augmentation|runtime)\.[a-z_.]+)$$)' \
		--keep '^(Experiment|validation_accuracy|metrics/test.json:errors|errors)$$'

ui: .venv/complete ## Browse every run in MLflow (make ui PORT=5001 for another port)
	@.venv/bin/python -m digits ui --port $(PORT)

serve: .venv/complete ## Serve the model over HTTP (make serve PORT=8080 for another port)
	@.venv/bin/python -m digits serve --port $(SERVICE)

demo: .venv/complete ## Draw digits in a browser
	@.venv/bin/python -m digits serve --port $(SERVICE) --open

wheel: .venv/complete ## Build dist/*.whl: recognition, service and page with the model, without torch
	.venv/bin/python -m build --wheel
	.venv/bin/twine check dist/*.whl

# All of it goes through the environment, where quotes and $ mean nothing; every user of the machine can read a command
# line, but not that. With ADDRESS, what people type into the browser, mlflow accepts that host name, and changes from
# pages served under it.
server: export SERVER_DATABASE := $(value DATABASE)
server: export SERVER_HOST := $(value HOST)
server: export SERVER_PORT := $(value PORT)
server: export SERVER_ARTIFACTS := $(value ARTIFACTS)
server: export SERVER_ADDRESS := $(value ADDRESS)
server: .venv/complete ## Serve a team's runs: make server DATABASE=postgresql://... ARTIFACTS=folder (see docs/servers.md)
	$(if $(value DATABASE),,$(error name the database: make server DATABASE=postgresql://user@host/name ARTIFACTS=folder))
	@origin=$${SERVER_ADDRESS%/}; \
	set -- --host "$$SERVER_HOST" --port "$$SERVER_PORT" --artifacts-destination "$$SERVER_ARTIFACTS"; \
	if [ -n "$$origin" ]; then set -- "$$@" --cors-allowed-origins "$$origin" \
		--allowed-hosts "localhost:*,127.0.0.1:*,$${origin##*//}"; fi; \
	MLFLOW_BACKEND_STORE_URI="$$SERVER_DATABASE" $(MLFLOW_SERVER) "$$@"

lock: .venv/bin/uv ## Renew requirements.lock from pyproject.toml, with the newest compatible versions
	.venv/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make lock" --output-file requirements.lock --quiet

clean: ## Remove what can be recreated: .venv, tool caches, checkpoints (results and MLflow runs stay)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .coverage .coverage.* .dvc/tmp/checkpoints
