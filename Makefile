# What a machine needs: python3 (3.11 or newer, with venv), make, and a package index for the first run.
# Everything else comes, by hash, from tests/requirements.lock into .venv.
PYTHON ?= python3
UV     ?= uv==0.13.9

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := sidecar tests

# Without .pyc files every start takes twice as long.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := test
.PHONY: demo test lint format bench soak fuzz coverage lock clean

demo: $(READY)
	$(BIN)/python -m sidecar demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/flake8-async $$(find $(SOURCES) -name '*.py' -not -path '*/pb/*')

format: $(READY)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m tests.bench $(ARGS)

soak: $(READY)
	$(BIN)/python -m pytest -m soak --timeout 0 $(ARGS)

# The same property tests, with many more examples.
fuzz: $(READY)
	$(BIN)/python -m pytest tests/unit --hypothesis-profile fuzz --timeout 0 $(ARGS)

coverage: $(READY)
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report

# Hashed files for any platform; neither an index address nor a host name gets into them. Versions stay where they
# are as long as they fit; ARGS=--upgrade moves them.
COMPILE = build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate --no-emit-index-url --no-emit-find-links $(ARGS)

lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet '$(UV)'
	$(COMPILE) pyproject.toml --output-file requirements.lock
	$(COMPILE) pyproject.toml --group dev --extra demo --constraints requirements.lock \
		--output-file tests/requirements.lock

$(READY): tests/requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") \
		if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r tests/requirements.lock
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +
