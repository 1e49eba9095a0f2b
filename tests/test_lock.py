"settings.ini names what the project uses, requirements.lock fixes every file of it: they agree."
import configparser
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def pins(texts):
    found = [Requirement(text) for text in texts]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in found}


@pytest.fixture(scope="module")
def settings():
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT/"settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


@pytest.fixture(scope="module")
def wanted(settings): return pins(settings["requirements"].split() + settings["dev_requirements"].split())


@pytest.fixture(scope="module")
def entries():
    "Of the lock: one text a package, with its hashes."
    lines = [line for line in (ROOT/"requirements.lock").read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


@pytest.fixture(scope="module")
def locked(entries): return pins(entry.split(" --hash")[0] for entry in entries)


def test_lock_holds_what_the_settings_pin(wanted, locked):
    drifted = {name: (version, locked.get(name)) for name, version in wanted.items() if locked.get(name) != version}
    assert not drifted, f"run `make lock`: (settings.ini, requirements.lock) are {drifted}"


def test_every_locked_package_has_hashes_and_comes_from_the_index(entries):
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==[\w.+-]+( ; [^-]+)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", entry), entry[:100]


def test_lock_is_complete(wanted, locked):
    "Whatever a locked package needs here is locked as well, at a version it accepts."
    todo, seen = [(name, frozenset()) for name in wanted], set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen: continue
        seen.add((name, extras))
        try: installed = distribution(name)
        except PackageNotFoundError: continue
        if installed.version != locked.get(name): continue  # a newer release than the locked one says nothing about the lock
        for need in map(Requirement, installed.requires or []):
            if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in extras or {""}): continue
            other = canonicalize_name(need.name)
            assert other in locked, f"{name} needs {other}: run `make lock`"
            assert need.specifier.contains(locked[other], prereleases=True), f"{name} needs {need}, locked is {locked[other]}"
            todo.append((other, frozenset(need.extras)))
    assert {name for name, _ in seen} > set(wanted) and all(distribution(name).version == locked[name] for name in wanted)


def test_python_of_the_lock_is_the_environment_s(settings):
    conda = (ROOT/"environment.yml").read_text(encoding="utf-8")
    assert "- python=3.11\n" in conda and tuple(map(int, settings["min_python"].split("."))) <= (3, 11)
    assert "--python-version 3.11" in (ROOT/"Makefile").read_text(encoding="utf-8")
