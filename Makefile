# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint format clean

$(STAMP): requirements.txt pyproject.toml
	@echo "installing into $(VENV), a minute or two"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## render a dataset, then train, predict, score, encode and report on it
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/demo.sh

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## style, types, then every test
	$(BIN)/python -m pytest -n 2 --dist=loadscope --no-loadscope-reorder --max-worker-restart=0 \
		--durations=5

format: $(STAMP)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## forget the virtual environment and the demo's products
	rm -rf $(VENV) demo
