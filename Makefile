# Needs Python 3.11 or newer, make and git. Everything else goes into .venv.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
TESTS := tools/tests.py

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all soak coverage lint format types contracts api bench docs mutants clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done
	@echo
	@echo '  Pass arguments on with ARGS="...", choose the interpreter with PYTHON=...'

env:  ## make .venv, or bring it up to date
	@sh tools/env.sh $(VENV) "$(PYTHON)"

demo: env  ## start the demo
	@$(BIN)/holdfast demo $(ARGS)

test: env  ## run the tests and the examples of the documentation
	@sh tools/packages.sh
	@$(BIN)/python $(TESTS) $(ARGS)

test-all: test  ## run them on every supported Python of this host
	@own=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	sh tools/pythons.sh | while read -r version python; do \
		[ "$$version" = "$$own" ] && continue; \
		echo "Python $$version"; \
		sh tools/env.sh "$(VENV)-$$version" "$$python" test || exit 1; \
		"$(VENV)-$$version/bin/python" $(TESTS) $(ARGS) </dev/null || exit 1; \
	done

soak: env  ## 20,000 cancelled calls and 20,000 clients that leave; minutes
	@$(BIN)/python $(TESTS) -q -n 0 -m soak --timeout 600 $(ARGS)

coverage: env  ## run the tests and report lines and branches that none of them reaches
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -q -m "not soak" $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

lint: env  ## check style and formatting
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

format: env  ## put the code in form
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

types: env  ## check the types with mypy and pyright, both strict
	@$(BIN)/mypy
	@$(BIN)/pyright

contracts: env  ## check who may import whom, and the rules of the house
	@$(BIN)/lint-imports
	@$(BIN)/python tools/house.py

api: env  ## write the public API down in docs/reference/api.txt
	@$(BIN)/python tools/api.py

bench: env  ## run the benchmarks
	@$(BIN)/python -m bench $(ARGS)

docs: env  ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

mutants: env  ## change the domain in small ways and see whether a test notices
	@$(BIN)/python tools/mutants.py $(ARGS)

clean:  ## remove environments and everything that was built
	@rm -rf .venv .venv-* build dist site mutants .coverage* .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
