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
.PHONY: help install lock prepare audit study outputs readme docs recording bench test slow soak notebooks lab nano-base clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed  ## .venv with the pinned dependencies

.venv/installed: settings.ini setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip "$$(grep -o 'uv==[0-9.]*' settings.ini)"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable ".[dev]" \
		|| $(BIN)/python -m pip install --quiet --editable ".[dev]"  # pip knows the mirrors of its own settings
	touch $@

lock: install  ## requirements.lock: every installed version, for the container
	$(BIN)/uv pip freeze --exclude-editable --python $(BIN)/python > requirements.lock

prepare: install  ## before a commit: export the library, clean the notebooks, lint, find unused code, test the notebooks
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/ruff check nbs docvlm tests paper setup.py
	$(BIN)/vulture --config vulture.toml
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2

audit: install  ## known vulnerabilities of the installed packages
	$(BIN)/uv tool run pip-audit --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

study: install  ## the study of PRESET (nano), on DOCUMENTS if given, and its report
	$(BIN)/docvlm-study --preset $(PRESET) --documents="$$DOCUMENTS"

outputs: study  ## run every notebook and store its outputs in nbs/
	$(BIN)/python -c "from docvlm.core import open_study; from docvlm.provenance import write_outputs; write_outputs(open_study('$(PRESET)'))"
	$(BIN)/nbdev_clean

readme: install  ## README.md from nbs/index.ipynb and the published results, paper/results.md from its schema
	$(BIN)/python -c "from docvlm.core import open_study; from docvlm.paper.readme import write_readme; print(write_readme(open_study('nano')))"

recording: install  ## figures/nano/demo.webp: the demo page answers questions about test pages; needs Chromium
	$(BIN)/python paper/recording.py

docs: install  ## README and notebooks as an HTML site in _docs, its links checked
	$(BIN)/python paper/site.py

bench: install  ## how much faster this is than the usual recipes
	$(BIN)/docvlm-bench --preset $(PRESET) --documents="$$DOCUMENTS"

# The smoke study of tests/test_study.py runs these notebooks from the first cell to the last.
STEP_NOTEBOOKS := 02_data|04_training|05_evaluation|06_ablation|07_failures|08_latency|09_report

test: export HF_HUB_OFFLINE = 1
test: install  ## all notebooks and tests; no network
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --do_print --skip_file_re '^([_.]|$(STEP_NOTEBOOKS))'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -q -m "not slow and not soak" -n 2 --no-loadscope-reorder

soak: export HF_HUB_OFFLINE = 1
soak: install  ## kill -9 over a whole study, ten thousand pages
	$(BIN)/python -m pytest tests -q -m soak

notebooks: study  ## every notebook through a Jupyter server, with the study of PRESET
	PRESET=$(PRESET) $(BIN)/python -m pytest tests/test_jupyter.py -v

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
