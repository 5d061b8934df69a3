# Every target makes its own environment on first use: a bare clone, Python 3.10 or newer (with venv) and make are enough.
PYTHON ?= python3
BIN := .venv/bin
BENCH := .venv-bench/bin
PIP_FLAGS := --disable-pip-version-check --quiet -c constraints.txt

.PHONY: demo test test-all check format bench clean

demo: .venv/installed
	$(BIN)/torchimplicit demo

# Two processes of one thread each: the tests are many and small, and a thread pool in each would only wait for the other.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-all: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv-bench/installed
	$(BENCH)/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv .venv-bench build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation is repeated; it is remade when what it depends on changes.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[demo,dev]'
	touch $@

# A peer that cannot be installed is shown as absent in the tables.
.venv-bench/installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	test -x $(BENCH)/python || $(PYTHON) -m venv .venv-bench
	$(BENCH)/python -m pip install $(PIP_FLAGS) -e .
	grep -v '^#' benchmarks/requirements.txt | while read -r peer; do \
		$(BENCH)/python -m pip install $(PIP_FLAGS) $$peer < /dev/null || echo "absent: $$peer could not be installed"; \
	done
	touch $@
