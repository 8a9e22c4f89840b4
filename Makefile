# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test coverage clean

# The main job on the videos that ship, with the model that ships; then what to look at.
demo: $(VENV)/.installed
	$(BIN)/gmcli infer examples/manifest.yaml -o demo-run
	$(BIN)/gmcli eval demo-run
	$(BIN)/gmcli render demo-run
	$(BIN)/gmcli report demo-run -o demo-run.html
	@echo
	@echo "Open demo-run.html in a browser; demo-run/renders has the videos with the masks drawn in."

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
# The compilers' libraries, loaded without a GPU, have crashed the tests that came after theirs: a process of their own.
	$(BIN)/python -m pytest tests/backends
	$(BIN)/python -m pytest --ignore=tests/backends

# Watched, not chased. What runs in worker processes does not show.
coverage: $(VENV)/.installed-dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest tests/backends
	$(BIN)/coverage run -m pytest --ignore=tests/backends
	$(BIN)/coverage combine
	$(BIN)/coverage report --skip-covered --show-missing

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing gmcli and torch into $(VENV): some GB, a few minutes.'
	$(BIN)/pip install --disable-pip-version-check --quiet -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing gmcli, torch and the development tools into $(VENV): some GB, a few minutes.'
	$(BIN)/pip install --disable-pip-version-check --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo-run demo-run.html
