# Every target sets itself up: a virtual environment, uv inside it, the locked dependencies, the package.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test chaos install lint type audit licences sbom lock clean help

help:
	@echo "make demo   adapt a denoiser to photographs from another camera, with tables and a report"
	@echo "make test   run the tests          make lint   ruff          make type   mypy"
	@echo "make lock   resolve requirements.lock anew     make clean   remove .venv and caches"
	@echo "make audit  ask for known vulnerabilities      make sbom    write sbom.cdx.json"

demo: $(INSTALLED)
	$(BIN)/gmd-ray adapt preset=demo

# Two processes: the tests that need Ray share one Ray session in one of them (tests/conftest.py says which).
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

install: $(INSTALLED)

# Kills drivers, workers and a node of running jobs; about half an hour.
chaos: $(INSTALLED)
	$(BIN)/python -m pytest -m chaos

lint: $(INSTALLED)
	$(BIN)/ruff check gmd_ray jobs tests .ci
	$(BIN)/ruff format --check gmd_ray jobs tests .ci

type: $(INSTALLED)
	$(BIN)/mypy

# Known vulnerabilities of the locked packages; one line where no service can be asked.
audit: $(INSTALLED)
	@$(BIN)/python .ci/audit.py

licences: $(INSTALLED)
	$(BIN)/python .ci/third_party.py

# CycloneDX, of what the lock has installed on this system.
sbom: $(INSTALLED)
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible \
		--output-file sbom.cdx.json $(BIN)/python

# Debian's Python has no ensurepip unless python3-venv is there; pip outside then installs uv inside.
# --no-deps: the lock is complete, and leaves out on purpose what [tool.uv] in pyproject.toml excludes.
# --compile-bytecode: once here, not in every worker that starts.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gmd_ray needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --without-pip $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv || $(PYTHON) -m pip --python $(BIN)/python install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

lock: $(INSTALLED)
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-annotate --no-header -q \
		-o requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
