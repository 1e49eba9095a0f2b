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

.PHONY: install lock audit study outputs bench test slow soak notebooks lab nano-base clean

install: .venv/installed

.venv/installed: settings.ini setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(LOCKED),$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# The files of every package by hash, for the Python and system of the published results; `make install LOCKED=1` takes these.
lock: install
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile setup.py --extra dev --generate-hashes --quiet \
		--python-version 3.11.7 --python-platform linux --output-file requirements.lock > /dev/null

# Known vulnerabilities of the locked packages, as the Python Package Index lists them.
audit: install
	$(BIN)/uv tool run pip-audit --requirement requirements.lock --disable-pip --require-hashes

study: install
	$(BIN)/docvlm-study --preset $(PRESET) --documents="$$DOCUMENTS"

# What the study's executed notebooks show, in the notebooks of the repository.
outputs: study
	$(BIN)/python -c "from docvlm.core import open_study, root; from docvlm.paper.readme import keep_outputs; \
		[print(path.name, keep_outputs(path, root()/'nbs'/path.name)) for path in sorted((open_study('$(PRESET)').run_dir/'notebooks').glob('*.ipynb'))]"
	$(BIN)/nbdev_clean

bench: install
	$(BIN)/docvlm-bench --preset $(PRESET) --documents="$$DOCUMENTS"

test: export HF_HUB_OFFLINE = 1
test: install
	$(BIN)/nbdev_test --n_workers 1 --do_print
	$(BIN)/python -m pytest tests -q -m "not slow and not soak"

# Minutes to hours: kill -9 over a whole smoke study, ten thousand pages.
soak: export HF_HUB_OFFLINE = 1
soak: install
	$(BIN)/python -m pytest tests -q -m soak

notebooks: study
	$(BIN)/python -m pytest tests/test_jupyter.py -v

slow: export HF_HUB_OFFLINE = 1
slow: install
	$(BIN)/python -m pytest tests -q -m slow

lab: install
	$(BIN)/jupyter lab --ServerApp.root_dir=$(CURDIR) nbs/index.ipynb

nano-base: install
	$(BIN)/python -c "from docvlm.core import root; from docvlm.execution import execute; run = root()/'data/runs/nano-base'; \
		execute('10_nano_base', {'train': True}, run/'10_nano_base.ipynb', run/'run.log', 'nano base')"

clean:
	rm -rf data/runs data/cache
