# Everything runs in .venv, which the targets make themselves: python3 >= 3.11 with venv is enough.
# Without make, see "python -m medverse_nb --help"; to start over, delete .venv.

PYTHON ?= python3
# For `make benchmark` and `make evidence`: the folder of public data beside the repository.
SHARED := $(or $(MEDVERSE_NB_SHARED),../shared)
TRAIN_ARGS ?=
EVIDENCE_ARGS ?=
CHROMIUM := $(or $(MEDVERSE_NB_CHROMIUM),/usr/bin/chromium)

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check --quiet
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo docs lab test test-browser test-notebooks lint train benchmark evidence clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/ready-demo ## segment a virtual brain with the shipped weights, on a CPU
	$(PY) -m medverse_nb demo

lab: $(VENV)/ready-lab ## open the tutorials in JupyterLab
	$(PY) -m jupyter lab tutorials

test: lint ## lint, type-check, then run the tests
	$(PY) -m pytest -q --ignore=tests/browser --ignore=tests/notebooks

test-browser: $(VENV)/ready-dev ## canvas and app in Chromium, nothing from outside; takes minutes
	@test -x "$(CHROMIUM)" || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	    && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || true
	@test -x "$(CHROMIUM)" || { echo "no Chromium at $(CHROMIUM); on Debian: apt install chromium," \
	  "elsewhere: make test-browser MEDVERSE_NB_CHROMIUM=/path/to/chromium" >&2; exit 1; }
	MEDVERSE_NB_CHROMIUM="$(CHROMIUM)" $(PY) -m pytest -q tests/browser

test-notebooks: $(VENV)/ready-dev ## run tutorials and notebooks, compare what is checked; takes minutes
	env -u MPLBACKEND TQDM_DISABLE=1 $(PY) -m pytest -q --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
	    --nbval-sanitize-with=tests/notebooks/sanitize.cfg tutorials notebooks tests/notebooks

docs: $(VENV)/ready-docs ## build the site into docs/_build/html; a warning is an error
	$(PY) -m sphinx -W --keep-going -q -b html -c docs -d docs/_build/doctrees . docs/_build/html
	@echo "written to docs/_build/html/index.html"

lint: $(VENV)/ready-dev ## ruff and mypy, changing nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

train: $(VENV)/ready-dev ## train the small weights; TRAIN_ARGS="--minutes 150 --resume"
	$(PY) -m medverse_nb train --config configs/tiny.yaml $(TRAIN_ARGS)

benchmark: $(VENV)/ready-demo ## measure the shipped weights into benchmarks/results.json
	$(PY) benchmarks/speed.py
	$(PY) benchmarks/brains.py --label-maps "$(SHARED)/data/brain_label_maps"
	$(PY) benchmarks/hippocampus.py --folder "$(SHARED)/data/hippocampus"

evidence: $(VENV)/ready-dev ## measure every claim beside its alternatives; two hours, goes on where it was
	$(PY) benchmarks/evidence.py --folder "$(SHARED)/data/hippocampus" \
	    --label-maps "$(SHARED)/data/brain_label_maps" $(EVIDENCE_ARGS)
	$(PY) benchmarks/tables.py

clean: ## delete caches and build products; keeps .venv, runs and your results
	rm -rf build dist docs/_build ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo_out
	find medverse_nb tests notebooks tutorials -name __pycache__ -type d -prune -exec rm -rf {} +
	find notebooks tutorials -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +

$(VENV)/ready-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "medverse_nb needs Python 3.11 or newer; '$(PYTHON)' is" \
	    "$$(command -v $(PYTHON) >/dev/null && $(PYTHON) --version 2>&1 || echo missing). Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@

# Alone and first: any other package would bring the newest torch, a far larger download.
$(VENV)/ready-torch: $(VENV)/ready-python constraints.txt
	$(PIP) -c constraints.txt "$(TORCH)"
	@touch $@

$(VENV)/ready-demo: $(VENV)/ready-torch pyproject.toml
	$(PIP) -c constraints.txt -e ".[demo]"
	@touch $@

$(VENV)/ready-lab: $(VENV)/ready-demo
	$(PIP) -c constraints.txt -e ".[demo,distributed,jupyter,registration]"
	@touch $@

# Holds all that the demo and JupyterLab need too.
$(VENV)/ready-dev: $(VENV)/ready-torch pyproject.toml
	$(PIP) -c constraints.txt -e ".[dev]"
	@touch $(VENV)/ready-demo $(VENV)/ready-lab $@

# After the others: pip takes ten times as long to agree on all of them at once.
$(VENV)/ready-docs: $(VENV)/ready-dev
	$(PIP) -c constraints.txt -e ".[docs]"
	@touch $@
