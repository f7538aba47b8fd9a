# What a machine needs: python3 (3.11 or newer, with venv), make, and a package index for the first run.
# Everything else comes, by hash, from tests/requirements.lock into .venv.
PYTHON ?= python3
UV     ?= uv==0.13.9

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := sidecar tests integration

# Off: 114 and 128 know `start` only by a list of names; 120 and 123 forbid to wait, or to unpack a group, while an error
# is handled, which reading back after a lost answer and giving callers one plain error need; 124 objects to async
# functions that fulfil a protocol; 127 wants another package than the one this is built with.
ASYNC_RULES := --enable ASYNC1 --disable ASYNC114,ASYNC120,ASYNC123,ASYNC124,ASYNC127,ASYNC128

# Without .pyc files every start takes twice as long.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := test
.PHONY: help hooks demo test integration lint format bench soak fuzz coverage alerts dist image image-test lock clean

help: ## list what can be made; ARGS="…" is passed on, as in `make test ARGS="-k lease -x"`
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 13

demo: $(READY) ## show the whole story with an embedded Teleport and Mattermost, in about a minute
	$(BIN)/python -m sidecar demo $(ARGS)

test: $(READY) ## run all tests on all cores, in about five minutes on two
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

integration: $(READY) ## run the scenarios on real servers; integration/ says how to name them
	$(BIN)/python -m pytest integration -rs $(ARGS)

lint: $(READY) ## check format, rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/flake8-async $(ASYNC_RULES) $$(find $(SOURCES) -name '*.py' -not -path '*/pb/*')

format: $(READY) ## mend what can be mended by itself
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

hooks: ## run `make format lint` before each commit in this clone
	@hook="$$(git rev-parse --git-path hooks/pre-commit)"; \
	if [ -e "$$hook" ] && ! cmp -s .ci/pre-commit "$$hook"; then \
		echo "$$hook is there already, and is another: move it away, or call .ci/pre-commit from it." >&2; exit 1; \
	fi; \
	mkdir -p "$${hook%/*}" && cp .ci/pre-commit "$$hook" && echo "$$hook runs make format lint from now on."

bench: $(READY) ## measure, beside the official plugin where it is at hand
	$(BIN)/python -m tests.bench $(ARGS)

LONG := --timeout 0

soak: $(READY) ## play the schedules that `make test` leaves out, a month of traffic, and an hour of hostile company; takes hours
	$(BIN)/python -m pytest -m soak $(LONG) $(ARGS)

fuzz: $(READY) ## run the property tests with many more examples
	$(BIN)/python -m pytest tests/unit --hypothesis-profile fuzz $(LONG) $(ARGS)

coverage: $(READY) ## say which lines no test runs
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report

alerts: $(READY) ## ask promtool about the alerts, as `make test` does where it is installed
	$(BIN)/python -m pytest -rs tests/unit/test_alerts.py $(ARGS)

dist: $(READY) ## build the wheel and the source archive, as a release has them
	rm -rf build/dist
	$(BIN)/python -m hatchling build --directory build/dist

# The first engine that answers. A health check is no part of the OCI format, which podman would write by itself; and
# the time of the last change, not of the build, makes the same layers each time.
ENGINE ?= $(firstword $(foreach one,docker podman,$(shell $(one) info >/dev/null 2>&1 && echo $(one))) docker)
# The name that the examples of compose/ use; nothing is published, so put your registry here.
IMAGE  ?= registry.example.com/teleport-mattermost-sidecar:$(VERSION)
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' sidecar/__init__.py)
CHANGED = $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
# Which one that is; asked by .ci/run, and never a file's name.
.engine:
	@echo $(ENGINE)

image: ## build the container image
	$(if $(findstring podman,$(ENGINE)),,SOURCE_DATE_EPOCH=$(CHANGED)) $(ENGINE) build --file Containerfile --tag $(IMAGE) \
		$(if $(findstring podman,$(ENGINE)),--format docker --timestamp $(CHANGED)) \
		--build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) $(IMAGE_ARGS) .

image-test: $(READY) ## run the container image
	SIDECAR_TEST_ENGINE=$(ENGINE) SIDECAR_TEST_IMAGE=$(IMAGE) $(BIN)/python -m pytest -rs tests/component/test_image.py $(ARGS)

# Hashed files for any platform; neither an index address nor a host name gets into them. Versions stay where they
# are as long as they fit; ARGS=--upgrade moves them.
COMPILE = build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate --no-emit-index-url --no-emit-find-links $(ARGS)

lock: ## write both lock files anew
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet '$(UV)'
	$(COMPILE) pyproject.toml --output-file requirements.lock
	$(COMPILE) pyproject.toml --group dev --extra demo --constraints requirements.lock \
		--output-file tests/requirements.lock

$(READY): tests/requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") \
		if sys.version_info < (3, 11) else None'
	@echo "Installing $$(grep -c == $<) packages into $(VENV) (230 MB): about half a minute, until $< changes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r tests/requirements.lock
	@touch $@

clean: ## remove all that was made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +
