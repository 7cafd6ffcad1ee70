PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

DEMO_SAMPLERS := kde30,kde_anchor30,joint30,average,diffusion,repair:diffusion

.DEFAULT_GOAL := help
.PHONY: help install demo test end-to-end lowest audit lint bench chaos clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## create the environment (.venv) and install HyperJAX with its tools into it

# Runs again only when pyproject.toml has changed since.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "HyperJAX needs Python 3.11 or newer, and '$(PYTHON)' is none: name one," \
	  "as in 'make $(MAKECMDGOALS) PYTHON=python3.12'" >&2; exit 1; }
	@echo "Installing into $(VENV): a minute or two, 1.5 GB on disk"
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: install ## the whole pipeline on scikit-learn's digits: zoo, models, samples, report
	$(BIN)/python train.py --config=configs/digits.py:demo --workdir=runs/demo
	$(BIN)/python sample.py --workdir=runs/demo --sampler=repair:diffusion --num_samples=80
	$(BIN)/python evaluate.py --workdir=runs/demo --experiments=fig2,fig4,denoiser,novelty \
	  --samplers=$(DEMO_SAMPLERS)
	@echo "The report: runs/demo/report/index.html"

test: install ## run all tests but those of whole commands, in two processes
	$(BIN)/python -m pytest -n 2 -m "not end_to_end"

end-to-end: install ## run the tests of whole commands: train, sample, evaluate, import, kills
	$(BIN)/python -m pytest -n 2 --maxschedchunk=1 -m end_to_end

lowest: ## run all tests with the oldest libraries that are allowed, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[dev]'
	.venv-lowest/bin/python -m pytest -n 2

audit: install ## look the installed libraries up among known vulnerabilities (asks the network)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip_audit --skip-editable

lint: install ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: install ## measure every path on this machine, which is to do nothing else: half an hour
	@set -e; for words in \
	  "population.py --members=1,128 --batches=32 --rounds=2 --precisions=float32,bfloat16" \
	  "autoencoder.py --augmentation=yes --rounds=2" "denoiser.py --sizes=small --rounds=2" \
	  "scaling.py" "processes.py --scale=demo --members=64 --epochs=5 --steps=20" \
	  "samplers.py" "zoo_io.py" "integrity.py" "import_zoo.py" "startup.py" "memory.py --case=smoke" \
	  "scale.py --members=1000"; \
	do echo "== $$words"; $(BIN)/python benchmarks/$$words; done

chaos: install ## kill every command 50 times, take its disk away 20 times a fault: hours
	$(BIN)/python tests/chaos.py --workdir=runs/chaos --kills=50
	$(BIN)/python tests/faults.py --workdir=runs/faults --times=20

clean: ## remove the environment and all caches; runs/ stays
	rm -rf $(VENV) *.egg-info build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
