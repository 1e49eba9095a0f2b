"Marks of tests that `make test` leaves out, and what several test files share."
import importlib.util
import json
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

from docvlm import files, steps


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: minutes or much memory, run by `make slow`")
    config.addinivalue_line("markers", "soak: minutes to hours, run by `make soak`")


WRITE_TO_SMOKE = {"test_benchmark", "test_interruptions", "test_one_page", "test_options", "test_schema", "test_systems"}


class FilesTogether(LoadFileScheduling):
    "A file stays in one process, and so do the files that write to this folder's smoke study."
    def _split_scope(self, nodeid):
        name = Path(super()._split_scope(nodeid)).stem
        return "smoke" if name in WRITE_TO_SMOKE else name


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, whose own groups do nothing with pytest 9.2
def pytest_xdist_make_scheduler(config, log): return FilesTogether(config, log)


def pytest_collection_modifyitems(items):
    "The longest file comes first, so that no process is left alone with it."
    items.sort(key=lambda item: item.path.stem != "test_study")


def load_script(name):
    "A script of paper/ as a module."
    path = Path(__file__).resolve().parent.parent/"paper"/f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"paper_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refusal(capsys, command, *given, **options):
    "The one line with which a command refuses; it prints nothing else."
    with pytest.raises(SystemExit) as stop: command(*given, **options)
    printed, line = capsys.readouterr()
    assert stop.value.code == 1 and not printed and line.count("\n") == 1 and line.startswith("docvlm: "), (printed, line)
    return line


@pytest.fixture
def repository(tmp_path, monkeypatch):
    "An empty repository, with notebooks that say nothing."
    (tmp_path/"settings.ini").write_text("lib_name = docvlm\n")
    (tmp_path/"nbs").mkdir()
    for notebook, *_ in steps.STEPS.values(): (tmp_path/f"nbs/{notebook}.ipynb").write_text(json.dumps({"cells": []}))
    monkeypatch.chdir(tmp_path)
    files.root.cache_clear()
    yield tmp_path
    files.root.cache_clear()
