# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
AUDIT = .audit

MINUTES = 10
GUIDED = .guided

.PHONY: demo test fuzz fuzz-guided crash-sweep lock licences audit coverage chaos clean

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

# Kill, cut, fill and damage at every point that there is; tests/crash has a selection of it. Needs a C compiler.
crash-sweep: $(VENV)/.installed-dev
	$(BIN)/python -m tests.crash.sweep

# Break small videos, then all other files that strangers may have written, for as long as one likes; the tests have a short
# and fixed part of it.
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz.video --minutes $(MINUTES)
	FUZZ_EXAMPLES=$$(($(MINUTES) * 500)) $(BIN)/python -m pytest --timeout 0 tests/fuzz/test_properties.py

# The same where coverage can guide it: what gmcli parses itself. atheris is not among what the tests need.
fuzz-guided: $(VENV)/.installed-dev
	test -d $(GUIDED) || $(BIN)/pip install --disable-pip-version-check --quiet --target $(GUIDED) 'atheris>=3,<4'
	for target in structure manifest ledger rle; do \
	  PYTHONPATH=$(GUIDED) $(BIN)/python -m tests.fuzz.guided $$target -max_total_time=$$(($(MINUTES) * 15)) || exit 1; done

# Watched, not chased. What runs in worker processes does not show.
coverage: $(VENV)/.installed-dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest tests/backends
	$(BIN)/coverage run -m pytest --ignore=tests/backends
	$(BIN)/coverage combine
	$(BIN)/coverage report --skip-covered --show-missing

# Lock what is installed here, after an upgrade such as `.venv/bin/pip install -U --upgrade-strategy eager -e '.[dev]'`.
lock:
	$(BIN)/python -m tests.supply.lock > constraints.new
	mv constraints.new constraints.txt

licences:
	$(BIN)/python -m tests.supply.licences > licences.new
	mv licences.new docs/licences.md

# Ask whether the locked versions have known vulnerabilities. Nobody to be asked is no failure, and is said.
audit:
	test -x $(AUDIT)/bin/pip-audit || \
	  { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install --disable-pip-version-check --quiet 'pip-audit>=2.9,<3'; } || true
	$(PYTHON) -m tests.supply.audit $(AUDIT)/bin/pip-audit constraints.txt || test $$? -eq 4

# Kill worker processes at random through 2,000 questions, some of them poison: nothing may be lost. A minute.
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m tests.chaos

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing gmcli and torch into $(VENV): some GB, a few minutes.'
	$(BIN)/pip install --disable-pip-version-check --quiet -e .
	touch $@

# What a user installs is not locked; what the tests run with is, so that a failure is ours and not a release's of yesterday.
$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing gmcli, torch and the development tools into $(VENV): some GB, a few minutes.'
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(AUDIT) $(GUIDED) build dist *.egg-info demo-run demo-run.html
