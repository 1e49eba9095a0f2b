# Everything runs in .venv with the versions pinned in settings.ini; only Python and make are needed.
PYTHON ?= python3
PRESET ?= nano
DOCUMENTS ?=
BIN := .venv/bin

# The folder's name as it was given, through the environment: neither make nor the shell reads anything into its characters.
override DOCUMENTS := $(value DOCUMENTS)
export DOCUMENTS

# Large arrays stay on the heap in huge pages instead of being mapped anew at each step: 15 % of a CPU training step.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 8589934592
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install prepare lock audit study outputs readme bench test slow soak notebooks lab nano-base clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed  ## .venv with the pinned dependencies

.venv/installed: settings.ini setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(LOCKED),$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

prepare: install  ## before a commit: export the library, clean the notebooks, lint, test the notebooks
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/ruff check nbs docvlm tests setup.py
	$(BIN)/nbdev_test --n_workers 1

# The files of every package by hash, for the Python and system of the published results; `make install LOCKED=1` takes these.
lock: install  ## requirements.lock anew
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile setup.py --extra dev --generate-hashes --quiet \
		--python-version 3.11.7 --python-platform linux --output-file requirements.lock > /dev/null

audit: install  ## known vulnerabilities of the locked packages
	$(BIN)/uv tool run pip-audit --requirement requirements.lock --disable-pip --require-hashes

study: install  ## the study of PRESET (nano), on DOCUMENTS if given, and its report
	$(BIN)/docvlm-study --preset $(PRESET) --documents="$$DOCUMENTS"

outputs: study  ## the outputs of the study's notebooks into nbs/
	$(BIN)/python -c "from docvlm.core import open_study; from docvlm.files import root; from docvlm.paper.readme import keep_outputs; \
		ran = open_study('$(PRESET)').run_dir/'notebooks'; \
		[print(path.relative_to(ran), keep_outputs(path, root()/'nbs'/path.relative_to(ran))) for path in sorted(ran.rglob('*.ipynb'))]"
	$(BIN)/nbdev_clean

readme: install  ## README.md from nbs/index.ipynb and the published results, paper/results.md from its schema
	$(BIN)/python -c "from docvlm.core import open_study; from docvlm.paper.readme import write_readme; print(write_readme(open_study('nano')))"

bench: install  ## how much faster this is than the usual recipes
	$(BIN)/docvlm-bench --preset $(PRESET) --documents="$$DOCUMENTS"

test: export HF_HUB_OFFLINE = 1
test: install  ## all notebooks and tests; no network
	$(BIN)/nbdev_test --n_workers 1 --do_print
	$(BIN)/python -m pytest tests -q -m "not slow and not soak"

soak: export HF_HUB_OFFLINE = 1
soak: install  ## kill -9 over a whole study, ten thousand pages
	$(BIN)/python -m pytest tests -q -m soak

notebooks: study  ## every notebook through a Jupyter server
	$(BIN)/python -m pytest tests/test_jupyter.py -v

slow: export HF_HUB_OFFLINE = 1
slow: install  ## the tests that take minutes or much memory
	$(BIN)/python -m pytest tests -q -m slow

lab: install  ## JupyterLab with the notebooks
	$(BIN)/jupyter lab --ServerApp.root_dir=$(CURDIR) nbs/index.ipynb

nano-base: install  ## train the small base anew (hours)
	$(BIN)/python -c "from docvlm.files import root; from docvlm.execution import execute; run = root()/'data/runs/nano-base'; \
		execute('10_nano_base', {'train': True}, run/'10_nano_base.ipynb', run/'run.log', 'nano base')"

clean:  ## remove runs and caches
	rm -rf data/runs data/cache
