# Everything one does with a checkout. It needs Python 3.11, 3.12 or 3.13, and a network the first time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/dev.txt
CODE := src tests benchmarks examples docs

# The first of these that will do makes .venv; `make serve PYTHON=/path/to/python3.12` names one.
PYTHON ?= python3 python3.13 python3.12 python3.11
# NIXL's own dependencies would bring torch for CUDA, 3 GB, of which nothing is needed here.
NIXL := nixl==1.5.1 nixl-cu13==1.5.1
# Port of `make serve`; empty: as configured, else 8000.
PORT ?=
# How many tests `make test` runs at a time. Most of them wait for processes; those with a model take a core or two.
TESTERS ?= 2
# More arguments for `diptych serve`, pytest, the benchmarks or `uv pip compile`.
ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help serve test check lint format docs screenshots bench soak lock clean

help: ## Show this.
	@awk -F ': .*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

serve: $(VENV)/serve.stamp ## Install what is missing and serve on port 8000 (PORT=8123, ARGS="--mixed 1").
	@exec $(BIN)/diptych serve $(if $(PORT),--port $(PORT)) $(ARGS)

test: $(VENV)/dev.stamp ## Install what is missing and run all tests: first the quick ones, then the slow ones.
	@$(get_chromium)
	@$(get_network_parts)
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal -m "not slow" $(ARGS)
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal -m slow $(ARGS)

check: lint test ## Check format, lint, types and import layers, then test. What CI runs.

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp ## Format the code and mend what the linter can.
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

docs: $(VENV)/dev.stamp ## Write the pages of docs that are made from code, and build the site into site/.
	$(BIN)/python docs/make_api_page.py
	$(BIN)/python docs/make_reference_pages.py
	PYTHONPATH=benchmarks $(BIN)/python docs/make_goodput_table.py
	$(BIN)/python docs/make_metrics_table.py
	$(BIN)/python docs/make_grafana_dashboard.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

screenshots: $(VENV)/dev.stamp ## Take the pictures of the dashboard anew, of a modeled server under load.
	@$(get_chromium)
	$(BIN)/python docs/make_screenshots.py

bench: $(VENV)/dev.stamp ## Run all benchmarks; results go to benchmarks/results/latest.
	$(BIN)/python benchmarks/run_all.py $(ARGS)

soak: $(VENV)/dev.stamp ## Serve 30 minutes while workers die and clients leave (ARGS="--minutes 3").
	$(BIN)/python benchmarks/soak.py --output benchmarks/results/latest $(ARGS)

lock: ## Pin all dependencies anew in requirements/dev.txt (ARGS=--upgrade takes the newest).
	@tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	$(call make_venv,$$tools); \
	"$$tools/bin/python" -m pip install -qq uv; \
	"$$tools/bin/uv" pip compile pyproject.toml --universal --python-version 3.11 --extra dev --extra bench --extra docs --extra mooncake --extra ray \
		--system-certs --no-emit-package diptych --annotation-style line --custom-compile-command "make lock" \
		--quiet --output-file $(LOCK) $(ARGS); \
	echo "$(LOCK) pins $$(grep -c '==' $(LOCK)) packages"

clean: ## Remove .venv, caches and build results. Models in ~/.cache/diptych stay.
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(wildcard $(CODE)) -name __pycache__ -type d -prune -exec rm -rf {} +

# What may be told about one interpreter: nothing if it will do, else why not.
define PYTHON_FAULT
import sys
version = ".".join(map(str, sys.version_info[:3]))
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    print("is Python " + version)
else:
    try:
        import ensurepip, venv
    except ImportError as error:
        print("is Python " + version + " without " + str(error.name))
endef
export PYTHON_FAULT

# make_venv FOLDER: a virtual environment there, of the first interpreter that will do.
define make_venv
	for python in $(PYTHON); do \
		fault=$$("$$python" -c "$$PYTHON_FAULT" 2>/dev/null || echo "is not there"); \
		if [ -z "$$fault" ]; then break; fi; \
		faults="$${faults:-}  $$python $$fault"$$'\n'; \
	done; \
	if [ -n "$$fault" ]; then \
		printf 'error: Diptych needs Python 3.11 to 3.13 with venv and pip, and found none:\n%s' "$$faults" >&2; \
		echo 'On Debian or Ubuntu: apt install python3-venv. Or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12' >&2; \
		exit 1; \
	fi; \
	"$$python" -m venv "$(1)"
endef

# The dashboard's tests need a browser. It is the system's: installed here if it is missing and we may, else said.
define get_chromium
	if ! $(BIN)/python docs/headless.py >/dev/null 2>&1; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo 'installing Chromium, for the tests of the dashboard' >&2; \
			{ apt-get update && apt-get install --yes --no-install-recommends chromium; } >/dev/null 2>&1 || true; \
		fi; \
		$(BIN)/python docs/headless.py >/dev/null 2>&1 || \
			echo 'no Chromium here: the tests of the dashboard will fail. apt install chromium, or CHROMIUM=/path' >&2; \
	fi
endef

# What Mooncake's transfer engine links to, and namespaces of hosts need; where they are missing, tests say so.
define get_network_parts
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
			! { ldconfig -p | grep -q libibverbs && ldconfig -p | grep -q librdmacm && command -v ip >/dev/null; }; then \
		echo 'installing libraries of RDMA and iproute2, for the tests of several machines' >&2; \
		{ apt-get update && apt-get install --yes --no-install-recommends \
			libibverbs1 librdmacm1 ibverbs-providers iproute2; } >/dev/null 2>&1 || true; \
	fi
endef

# Stamps, not $(BIN)/python: what was interrupted half way is done again.
$(VENV)/created.stamp:
	@$(call make_venv,$(VENV))
	@touch $@

$(VENV)/serve.stamp: pyproject.toml $(LOCK) $(VENV)/created.stamp
	@echo 'installing Diptych into $(VENV): 0.4 GB, about a minute the first time' >&2
	@$(BIN)/python -m pip install -qq --constraint $(LOCK) --editable .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml $(LOCK) $(VENV)/created.stamp
	@echo 'installing Diptych and its development tools into $(VENV)' >&2
	@$(BIN)/python -m pip install -qq --requirement $(LOCK)
	@$(BIN)/python -m pip install -qq --no-deps $(NIXL)
	@$(BIN)/python -m pip install -qq --no-deps --editable .
	@touch $@ $(VENV)/serve.stamp
