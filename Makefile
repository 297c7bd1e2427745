# make demo: install, then the main job.  make test: install, then every test.  make check: linters and types.
# make fuzz: 10,000 mutated files, and the table of tests/fuzz/README.md.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check

.PHONY: demo test check fuzz clean

demo: $(VENV)/.installed
	$(VENV)/bin/metalora train

# Two processes; each takes a module at a time, in order: the long ones, of tests/integration, come first.
test: $(VENV)/.installed-test
	$(VENV)/bin/pytest -n 2 --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

check: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "metalora needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V); set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e .[test]
	touch $@

fuzz: $(VENV)/.installed-test
	$(VENV)/bin/python -m tests.fuzz --mutants 10500 --write

clean:
	rm -rf $(VENV) runs mlruns mlflow.db build *.egg-info
