# Everything runs in .venv, which `setup` builds from pyproject.toml and constraints.txt.
# Needed on the machine: Python 3.11 or newer, make, a C compiler.

# The first Python that is new enough; `make PYTHON=/path/to/python setup` overrides it.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin
STAMP := .venv/.stamp

DECODE := $(BIN)/python models/qwen3_14b/decode_layer.py --lm-head skip
FULL_SIZE_GIB := 14

TEST_WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --durations=10

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full lint docs clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## build .venv, if pyproject.toml or constraints.txt changed since the last time

# The stamp comes last, so an interrupted setup is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python setup" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "error: $(PYTHON) cannot make a virtual environment; install its venv package (Debian, Ubuntu: python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# tools.memory exits with 3 for "not enough"; any other failure is a failure of the demo.
demo: $(STAMP) ## one Qwen3-14B decode layer on the simulator: tiny, then full size if memory allows
	$(DECODE) --config tiny
	@$(BIN)/python -m tools.memory --need-gib $(FULL_SIZE_GIB); code=$$?; \
	if [ $$code -eq 0 ]; then echo "$(DECODE)"; $(DECODE); \
	elif [ $$code -eq 3 ]; then echo "demo: the full-size layer was SKIPPED: it needs $(FULL_SIZE_GIB) GiB of free memory (see the line above)"; \
	else exit $$code; fi

# One thread per worker: more oversubscribe the cores.
test: $(STAMP) ## the tests, without the slow ones; EXPLORE=1 draws new random programs
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow" -n $(TEST_WORKERS) --dist loadgroup

# One at a time: these are the ones that fill the memory.  pytest exits with 5 when it collects nothing.
test-full: $(STAMP) ## the slow tests only
	@echo '$(PYTEST) -m slow'; $(PYTEST) -m slow; code=$$?; \
	if [ $$code -eq 5 ]; then echo "error: no test is marked slow, so test-full checked nothing" >&2; fi; \
	exit $$code

lint: $(STAMP) ## ruff and mypy (strict on ir, ops, golden)
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(STAMP) ## write the generated pages of docs/ anew
	$(BIN)/pypto-models docs --write
	$(BIN)/python -m tools.pages

clean: ## remove caches and build output
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	rm -rf .venv
