"The Dockerfile, as far as it can be checked without building it: its paths, versions, user and secrets."
import json
import re
from pathlib import Path

import pytest
from fastcore.foundation import Config
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SECRET = re.compile(r"(?i)(token|secret|passw|api_?key|credential)|hf_[A-Za-z0-9]{8}|AKIA[A-Z0-9]{8}|-----BEGIN")


def instructions(text):
    "The instructions of a Dockerfile, as (keyword, arguments); continued lines are joined, comments left out."
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined]


def copied(text):
    "The paths that a Dockerfile copies from the repository."
    for keyword, arguments in instructions(text):
        if keyword != "COPY" or "--from=" in arguments: continue
        *sources, _ = [part for part in arguments.split() if not part.startswith("--")]
        yield from sources


def left_out(path, ignore):
    "Whether a .dockerignore keeps a path of the repository's root out: the last line that matches decides."
    lines = [line for line in ignore.splitlines() if line and not line.startswith("#")]
    return next((not line.startswith("!") for line in reversed(lines) if line.lstrip("!") in (path, "*")), False)


def faults(text, ignore, lock, pins, scripts, python):
    "What is wrong with a Dockerfile."
    steps, found = instructions(text), []
    user = "root"
    for keyword, arguments in steps:
        if keyword == "FROM" and not re.search(r":\d+\.\d+\.\d+-[\w.-]+(@sha256:\w{64})?$", arguments): found.append(f"not pinned: {arguments}")
        if keyword == "USER": user = arguments
        if keyword == "COPY" and user != "root" and "--chown=" not in arguments: found.append(f"root owns {arguments}")
        if keyword == "ADD" or re.search(r"\bsudo\b|(curl|wget)[^&]*\|\s*(ba)?sh", arguments): found.append(f"unsafe: {keyword} {arguments}")
        if SECRET.search(arguments): found.append(f"a secret: {arguments}")
    if user in ("root", "0"): found.append("runs as root")
    found += [f"not in the repository: {path}" for path in copied(text) if not (ROOT/path).exists()]
    found += [f"left out by .dockerignore: {path}" for path in copied(text) if left_out(path, ignore)]
    if f"astral-sh/uv:{pins['uv']} " not in text: found.append("another uv than the pin")
    if f"--python {python} " not in text: found.append("another Python than the pin")
    cuda, base = lock["cuda-toolkit"].split("."), re.search(r"cuda:(\d+\.\d+)", text)
    if not base or base[1].split(".") != cuda[:2]: found.append("another CUDA than torch's")
    keyword, command = steps[-1]
    if keyword != "CMD" or json.loads(command)[0] not in scripts: found.append(f"not a command: {command}")
    return found


def settings():
    return Config(ROOT, "settings.ini")


def read_lock():
    "Version by package, names in canonical form."
    lines = (ROOT/"requirements.lock").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", line) for line in lines), "the lock holds exact versions, one a line"
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def context():
    "What a Dockerfile is checked against: .dockerignore, lock, pins, commands and Python version."
    values = settings()
    pins = dict(pin.split("==") for pin in (values["requirements"] + " " + values["dev_requirements"]).split())
    scripts = re.findall(r"(\S+)=", values["console_scripts"])
    return ((ROOT/".dockerignore").read_text(encoding="utf-8"), read_lock(), pins, scripts, values["min_python"])


def test_the_dockerfile_has_no_fault():
    assert faults((ROOT/"Dockerfile").read_text(encoding="utf-8"), *context()) == []


def test_the_lock_holds_the_pins():
    lock, pins = read_lock(), context()[2]
    wrong = {name: version for name, version in pins.items() if lock.get(canonicalize_name(name)) != version}
    assert not wrong, f"run `make lock`: {wrong}"


@pytest.mark.parametrize("old, new, fault", [
    ("13.0.3-runtime-ubuntu24.04", "latest", "not pinned"), ("cuda:13.0.3", "cuda:12.4.1", "another CUDA"),
    ("USER 10001\n", "", "runs as root"), ("USER 10001", "USER root", "runs as root"),
    ("COPY --chown=docvlm:docvlm nbs nbs", "COPY nbs nbs", "root owns nbs"), ("figures figures", "pictures figures", "not in the repository: pictures"),
    ("COPY --chown=docvlm:docvlm nbs nbs", "COPY --chown=docvlm:docvlm tests tests", "left out by .dockerignore: tests"),
    ("ENV PATH", "ENV HF_TOKEN=abc\nENV PATH", "a secret"), ("apt-get update", "curl https://a.b/c | sh", "unsafe"),
    ("uv:0.13.8", "uv:latest", "another uv"), ("--python 3.11 ", "--python 3.12 ", "another Python"),
    ('"docvlm-study"', '"docvlm-everything"', "not a command")])
def test_a_fault_is_found(old, new, fault):
    text = (ROOT/"Dockerfile").read_text(encoding="utf-8")
    assert old in text
    assert any(said.startswith(fault) for said in faults(text.replace(old, new), *context())), faults(text.replace(old, new), *context())


def test_no_secret_place_gets_into_the_image():
    ignore = (ROOT/".dockerignore").read_text(encoding="utf-8")
    assert ignore.split("\n")[1] == "*", "everything is left out unless it is named"
    for path in (".git", ".venv", ".env", "tests", "audit.log"): assert left_out(path, ignore), path
    for path in ("data/runs", "data/cache"): assert path in ignore.splitlines(), path
