# The README's two commands, `make demo` and `make test`: they need python3 (3.10 or later) and make alone.
# PYTHON chooses the interpreter (`make test PYTHON=python3.12`), VENV the environment that is made.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test quick lint format clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## export the reference model, ask it questions about pictures, print the answers
	$(BIN)/edgevqa demo

test: lint ## lint, types and every test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

quick: $(INSTALLED) ## the tests that take seconds
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

lint: $(INSTALLED) ## ruff, mypy and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(INSTALLED) ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, what was built and what was cached
	rm -rf $(VENV) build dist edgevqa.egg-info .mypy_cache .pytest_cache .ruff_cache

# The stamp is written last: an interrupted install is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("edgevqa needs Python 3.10 or later; this is %d.%d. Try: make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,data,dev,export,openvino,report,tensorrt-rtx]'
	@touch $@
