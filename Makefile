# Every target makes its own environment on first use: a bare clone, Python 3.10 or newer (docs: 3.11; with venv) and make are enough.
PYTHON ?= python3
BIN := .venv/bin
BENCH := .venv-bench/bin
DOCS := .venv-docs/bin
PIP_FLAGS := --disable-pip-version-check --quiet -c constraints.txt

# The ends of the range of torch: the oldest that pyproject.toml allows, and the one that constraints.txt pins.
VERSIONS := $(shell sed -n 's/^dependencies = .*torch>=\([0-9.]*\),.*/\1.0/p' pyproject.toml) $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: demo test test-all test-versions check format bench docs docs-test clean

demo: .venv/installed
	$(BIN)/torchimplicit demo

# Two processes of one thread each: the tests are many and small, and a thread pool in each would only wait for the other. Each
# takes one half, and of the other's what is left when its own is done: handed out in portions, the last ones, which compile, are one's alone.
TWO := -n 2 --dist worksteal

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) -m "not slow"

test-all: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO)

# A part of the fast tests that meets what differs between releases of torch.
REPRESENTATIVE := tests/test_readme.py tests/capture tests/loop tests/gradients/test_every_problem.py \
	tests/gradients/test_tensors.py tests/gradients/test_paths.py tests/problems/test_black_boxes.py \
	tests/problems/test_scalar.py tests/problems/test_traps.py tests/stack/test_imports.py tests/stack/test_compile.py \
	tests/stack/test_graph.py tests/stack/test_graph_linear.py tests/stack/test_export.py tests/stack/test_matrix.py \
	tests/stack/test_memory.py tests/stack/test_recomputation.py

# Each version in an environment of its own (GBs). Any other: make test-versions VERSIONS=2.9.1
test-versions: $(VERSIONS:%=test-with-%)

test-with-%: .venv-versions/%/installed
	OMP_NUM_THREADS=1 .venv-versions/$*/bin/python -m pytest $(TWO) -m "not slow" $(REPRESENTATIVE)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv-bench/installed
	$(BENCH)/python -m benchmarks $(ARGS)

# Offline. Every example and every code cell runs; a warning is an error.
docs: .venv-docs/installed
	OMP_NUM_THREADS=1 $(DOCS)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo "the site is docs/_build/html/index.html"

docs-test: .venv-docs/installed
	OMP_NUM_THREADS=1 $(DOCS)/python -m pytest docs/tests

clean:
	rm -rf docs/_build docs/examples
	rm -rf .venv .venv-bench .venv-docs .venv-versions build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
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

.venv-docs/installed: pyproject.toml constraints.txt docs/constraints.txt
	test -x $(DOCS)/python || $(PYTHON) -m venv .venv-docs
	$(DOCS)/python -m pip install $(PIP_FLAGS) -c docs/constraints.txt -e '.[docs]'
	touch $@

# What torch itself asks for in one release only is left to it.
.venv-versions/%/installed: pyproject.toml constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	grep -vE '^(torch|sympy|setuptools)==' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet -c $(@D)/constraints.txt torch==$* -e '.[demo,dev]'
	touch $@

.PRECIOUS: .venv-versions/%/installed
