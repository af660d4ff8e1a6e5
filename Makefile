# Everything here sets itself up; only make and Python 3.10 or later are needed.
#   make demo    prune a small model and show the result
#   make test    run the tests
#   make test-extensive    run those that `make test` leaves out: the other families of pipelines
#   make test-browser    open the report in Chromium, which has to be installed with its driver
#   make notebooks    execute the notebooks in examples/ and keep their outputs
#   make notebooks-check    execute them, and keep nothing
#   make lint    check format, types and imports
#   make docs    build the documentation site into build/site; any broken link is an error
#   make docs-serve    show the site on http://127.0.0.1:8000, built again at each change
#   make docs-deploy    publish the site on GitHub Pages, from the branch gh-pages
# A torch without CUDA, where pip would pick the large one:
#   make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
HERE := not gpu and not browser
export NO_MKDOCS_2_WARNING := 1
IN_TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-extensive test-browser notebooks notebooks-check lint docs docs-serve docs-deploy format clean

demo: $(INSTALLED)
	$(BIN)/ldpruner demo

test: $(INSTALLED)
	mkdir -p build
	$(BIN)/pytest $(IN_TWO) -m "not extensive and $(HERE)" --junit-xml=build/test-results.xml $(PYTEST_ARGS)

test-extensive: $(INSTALLED)
	mkdir -p build
	$(BIN)/pytest $(IN_TWO) -m "extensive and $(HERE)" --junit-xml=build/extensive-results.xml $(PYTEST_ARGS)

test-browser: $(INSTALLED)
	mkdir -p build
	$(BIN)/pytest -m browser --junit-xml=build/browser-results.xml $(PYTEST_ARGS)

notebooks: $(INSTALLED)
	$(BIN)/python examples/execute.py

notebooks-check: $(INSTALLED)
	$(BIN)/python examples/execute.py --check --jobs 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict

docs-serve: $(INSTALLED)
	$(BIN)/mkdocs serve

docs-deploy: $(INSTALLED)
	$(BIN)/mkdocs gh-deploy --strict

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install $(PIP_ARGS) --constraint constraints.txt --editable ".[dev]"
	touch $@
