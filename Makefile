# Two commands: `make reproduce` re-runs the papers and renders the book, `make test` runs the tests. `make help` lists the rest.
# Each makes .venv from requirements.lock when it is missing or stale; only Python 3.11+ with venv, and make, must be there.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: reproduce test env data book lab bench lint clean help

PAPER ?= all
PROFILE ?= demo
DATA ?=
DATASET ?=
WEIGHTS ?=
ACCUMULATE ?=
MORE ?=
STORE ?= runs
DEVICE ?= auto
STRICT ?=
JOBS ?= 2
TESTS ?=
PYTHON ?=

WBCREPRO := .venv/bin/wbcrepro
what := --paper "$(PAPER)" --profile "$(PROFILE)" --store "$(STORE)" \
	$(if $(DATA),--data "$(DATA)") $(if $(DATASET),--dataset "$(DATASET)") \
	$(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(ACCUMULATE),--accumulate "$(ACCUMULATE)")
# Waiting threads must not spin: beside any other busy process they would take its core.
export OMP_WAIT_POLICY ?= PASSIVE

# The Python that makes .venv: PYTHON=..., else the first that is new enough.
define bootstrap
for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then exec "$$python" tools/bootstrap.py; fi; \
	if [ -n "$(PYTHON)" ]; then break; fi; \
done; \
echo "wbcrepro needs Python 3.11 or newer with venv$(if $(PYTHON), ($(PYTHON) is not)). Install it, for example:" \
	"apt install python3 python3-venv (Debian 12, Ubuntu 24.04) or brew install python@3.13 (macOS)." >&2; exit 2
endef

reproduce: env  ## run what is missing of PAPER's experiments, execute the notebooks, render the book
	@$(WBCREPRO) reproduce $(what) --device "$(DEVICE)" $(if $(MORE),--more "$(MORE)")
	@$(WBCREPRO) report $(what)
	@$(WBCREPRO) book $(what)

test: env  ## run the tests (STRICT=1: a skipped test fails; JOBS=2 processes; TESTS=tests/test_x.py for some)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(if $(STRICT),WBCREPRO_STRICT=1) \
		.venv/bin/python -m pytest -q -n $(JOBS) --dist loadfile $(TESTS)

env:  ## make or update .venv from requirements.lock
	@$(bootstrap)

data: env  ## list the datasets: licence, access, and which are found below DATA
	@$(WBCREPRO) data list $(if $(DATA),--data "$(DATA)")

book: env  ## execute the notebooks that changed and render the book from the cells that are there
	@$(WBCREPRO) book $(what)

lab: env  ## open the notebooks in JupyterLab (there they run what is missing)
	@.venv/bin/jupyter lab --notebook-dir=notebooks

bench: env  ## run the benchmarks against their peers, print a table, write bench.json
	@.venv/bin/python benchmarks/run.py

lint: env  ## check the style (ruff)
	@.venv/bin/ruff check .

clean:  ## delete build/ and caches (never runs/, where the results are)
	@rm -rf build bench.json .pytest_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -path ./runs -prune -o -path ./.git -prune -o \
		\( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 rm -rf
	@echo "Deleted build/ and caches. Results are kept in $(STORE)/: delete that folder yourself to start over."

help:  ## print this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: PAPER=decoupled|boda|sada|all  PROFILE=tiny|demo|mini|paper  DATA=folder of datasets  DATASET=name"
	@echo "           WEIGHTS=package|hub|random|file  ACCUMULATE=passes of a batch, for small cards"
	@echo "           MORE=1 (ablations and sweeps too)|2 (further trials too)"
	@echo "           STORE=runs  DEVICE=auto|cpu|cuda  STRICT=1  JOBS=2  PYTHON=python3.13"
	@echo "Example:   make reproduce PAPER=decoupled PROFILE=mini DATA=../data"
