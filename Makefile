# Two commands for a fresh machine: `make demo` and `make test`. With LOCKED=1 they install what
# requirements.lock names, every file checked by its hash.
PYTHON ?= python3.11
VENV := .venv$(if $(LOCKED),-locked)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
PIP := -m pip --quiet --disable-pip-version-check

# Those that meet the packages of requirements.txt where their versions differ.
OLDEST_MODULES := annotation_shapes augment boundary cache checks curves dataset export_masks flags folds images import_masks losses \
	mixed_sizes model_file optimizers writers pictures postprocess recipe report submission trainer
OLDEST_TESTS := $(addprefix tests/test_,$(addsuffix .py,$(OLDEST_MODULES)))

# The long forms of the harnesses in tests/faults, whose figures are in docs/reliability.md.
FAULTS := pictures tables models many_photos small_disk two_processes kills

PYTEST := $(BIN)/python -m pytest -n 3 --dist=loadscope --no-loadscope-reorder \
	--max-worker-restart=0 --durations=5

TEST_HELPERS := conftest.py loss_references.py offline.py processes.py

.PHONY: demo test test-slow test-oldest faults lock lint docs site format clean

$(STAMP): requirements.txt pyproject.toml requirements.lock
	@echo "installing into $(VENV), a minute or two"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) install --upgrade pip
ifdef LOCKED
	@$(BIN)/python $(PIP) install --require-hashes -r requirements.lock
	@$(BIN)/python $(PIP) install --no-deps --no-build-isolation -e .
else
	@$(BIN)/python $(PIP) install -e '.[dev]'
endif
	@touch $@

$(OLDEST)/.installed: requirements.txt pyproject.toml
	@echo "installing the lower bounds of requirements.txt into $(OLDEST), a minute or two"
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@sed -E 's/>=([^,]+),.*/==\1/' requirements.txt > $(OLDEST)/lower-bounds.txt
	@$(OLDEST)/bin/python $(PIP) install --upgrade pip
	@$(OLDEST)/bin/python $(PIP) install -c $(OLDEST)/lower-bounds.txt -e '.[test]'
	@touch $@

demo: $(STAMP)  ## render a dataset, then train, predict, score, encode and report on it
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/demo.sh

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd benchmarks && MYPYPATH=.. ../$(BIN)/mypy --config-file=../pyproject.toml --cache-dir=../.mypy_cache .
	cd tests && MYPYPATH=.. ../$(BIN)/mypy --config-file=../pyproject.toml --cache-dir=../.mypy_cache $(TEST_HELPERS)

# Three workers for two cores: one often waits, for the disk or for what it has started.
test: lint  ## style, types, then every test but the slowest
	$(PYTEST) -m "not slow"

test-slow: $(STAMP)  ## the slowest tests: every recipe, kills, hostile machines, other backends
	$(PYTEST) -m slow

test-oldest: $(OLDEST)/.installed  ## the tests that touch our requirements, with their lower bounds
	$(OLDEST)/bin/python -m pytest -n 2 --dist=loadscope -m "not slow" $(OLDEST_TESTS)

faults: $(STAMP)  ## damage, kill, starve and crowd every command: an hour or two, a table each
	status=0; for harness in $(FAULTS); do \
		echo "== $$harness"; $(BIN)/python tests/faults/$$harness.py || status=1; \
	done; exit $$status

lock: $(STAMP)  ## the newest releases within the bounds, with their hashes, in requirements.lock
	@$(BIN)/python $(PIP) install 'uv>=0.5,<1'
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --upgrade \
		--generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links --extra=dev \
		--python-version=3.11 --output-file=requirements.lock pyproject.toml

docs: $(STAMP)  ## docs/commands.md from the flags
	$(BIN)/carvana-tf --reference > docs/commands.md

site: $(STAMP) docs  ## the documentation as pages, in site/
	@$(BIN)/python $(PIP) install -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

format: $(STAMP)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## forget the virtual environments and the demo's products
	rm -rf .venv .venv-locked $(OLDEST) demo site
