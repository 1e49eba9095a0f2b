"The repository is what its notebooks say: in sync, clean, pinned alike, imports one way."
import ast
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest
from fastcore.foundation import Config

from docvlm import steps

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path for path in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
MODULES = sorted(path for path in (ROOT/"docvlm").rglob("[a-z]*.py"))


def name_of(path): return ".".join(path.relative_to(ROOT/"docvlm").with_suffix("").parts)


def notebook_of(path):
    "The notebook that a module is exported from, as folder and name, from the module's first line."
    folder, _, name = re.search(r"nbs/(.*)\.ipynb", path.read_text(encoding="utf-8").splitlines()[0])[1].rpartition("/")
    return folder, name


def imported(path):
    "The modules that a module imports itself."
    return steps.imported_modules(path.read_text(encoding="utf-8"), name_of(path).rpartition(".")[0])


def test_imports_run_one_way():
    "No module imports one of a later notebook of its folder; what the story rests on does not know the story."
    place = {name_of(path): notebook_of(path) for path in MODULES}
    later, upward = [], []
    for path in MODULES:
        folder, name = place[module := name_of(path)]
        for other in imported(path):
            if place[other][0] == folder and place[other][1] >= name: later.append((module, other))
            if folder in ("pages", "inputs", "engine", "analysis") and place[other][0] == "" and other != "core": upward.append((module, other))
    assert not later and not upward, (later, upward)


def test_every_notebook_is_numbered_in_its_folder():
    for folder in {path.parent for path in NOTEBOOKS}:
        numbers = [path.name[:2] for path in NOTEBOOKS if path.parent == folder and path.stem not in ("index", "gpu_guide", "own_documents")]
        assert numbers == [f"{n:02d}" for n in range(len(numbers))], folder


def test_light_modules_do_not_import_torch():
    light = ["analysis.metrics", "documents", "baselines.ocr", "paper.tables", "paper.figures", "report", "paper.readme"]
    code = (f"import sys, importlib\nfor name in {light}:\n    importlib.import_module('docvlm.' + name)\n"
            "    if 'torch' in sys.modules: sys.exit(name + ' imports torch')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_library_is_exported_and_notebooks_are_clean(tmp_path):
    for name in ("nbs", "docvlm", "settings.ini", "setup.py", "README.md"):
        source = ROOT/name
        shutil.copytree(source, tmp_path/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")) if source.is_dir() else shutil.copy(source, tmp_path/name)
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([Path(sys.executable).parent/command], cwd=tmp_path, check=True, capture_output=True)
    for name in ("nbs", "docvlm"):
        for file in sorted(f for f in (tmp_path/name).rglob("*") if f.suffix in (".py", ".ipynb")):
            assert file.read_bytes() == (ROOT/file.relative_to(tmp_path)).read_bytes(), f"{file.relative_to(tmp_path)}: run nbdev_export and nbdev_clean"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_notebooks_carry_no_errors_paths_or_large_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", f"{path.name} holds an error"
            text = json.dumps(output)
            assert str(ROOT) not in text and "/home/" not in text and "/root/" not in text, f"{path.name} holds a machine path"
            assert len(text) < 400_000, f"{path.name} holds an output of {len(text)} characters"


def test_the_linter_finds_nothing():
    found = subprocess.run([Path(sys.executable).parent/"ruff", "check", "nbs", "docvlm", "tests", "paper", "setup.py"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-3000:]


def test_modules_stay_small():
    "Lines as they stand in the notebook: without nbdev's mark and the blank line at each cell, which would speak against short cells."
    lines = lambda path: re.sub(r"\n# %% .*", "", path.read_text(encoding="utf-8")).splitlines()
    long = {name_of(p): n for p in MODULES if (n := len(lines(p))) > 400}
    assert not long, f"split by meaning: {long}"


def test_nothing_unused_is_found():
    found = subprocess.run([Path(sys.executable).parent/"vulture", "--config", "vulture.toml"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-3000:]


def public_names():
    "Of every module: its name and its `__all__`."
    for path in MODULES:
        listed = [node.value for node in ast.parse(path.read_text(encoding="utf-8")).body
                  if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
        for name in ast.literal_eval(listed[0]) if listed else []: yield name_of(path), name


def words(text): return Counter(re.findall(r"\w+", text))


def test_every_public_name_is_used():
    "In the library, an example, a test or the report's template; vulture takes `__all__` for a use."
    used = words((ROOT/"paper"/"template.md.j2").read_text(encoding="utf-8"))
    for path in [*MODULES, *(ROOT/"tests").glob("*.py")]: used += words(re.sub(r"__all__ = \[.*?\]", "", path.read_text(encoding="utf-8"), flags=re.S))
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code" and "#| export" not in (source := "".join(cell["source"])): used += words(source)
    unused = [f"{module}.{name}" for module, name in public_names() if used[name] < 2 and module != "cli"]
    assert not unused, f"nothing uses {unused}"


SHARED = set()  # public names that two modules may define


def test_a_public_name_is_defined_once():
    places = {}
    for module, name in public_names(): places.setdefault(name, []).append(module)
    shared = {name: modules for name, modules in places.items() if len(modules) > 1 and name not in SHARED}
    assert not shared, f"one word, one meaning: {shared}"


MOST_MODULES = 60  # 45 were asked; at 400 lines a module that would be 18,000 lines, and there are 20,000


def test_there_are_few_modules(): assert len(MODULES) <= MOST_MODULES, len(MODULES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_an_example_does_not_change_what_a_library_s_name_means(path):
    "An import of an example that rebinds a name imported by exported code would change that code, in the notebook alone."
    library, examples = {}, []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code": continue
        source = "".join(cell["source"])
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, (ast.Import, ast.ImportFrom)): continue
            for alias in node.names:
                meaning = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name if alias.asname else alias.name.partition(".")[0]
                name = alias.asname or alias.name.partition(".")[0]
                if source.startswith("#| export"): library[name] = meaning
                else: examples.append((name, meaning))
    rebound = {name: (library[name], meaning) for name, meaning in examples if library.get(name, meaning) != meaning}
    assert not rebound, f"give the example's import another name: {rebound}"


def test_pins_agree():
    "Versions stand in settings.ini alone, and the environment has them."
    settings = Config(ROOT, "settings.ini")
    pins = settings.requirements.split() + settings.dev_requirements.split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    other = {pin: version(pin.partition("==")[0]) for pin in pins if version(pin.partition("==")[0]) != pin.partition("==")[2]}
    assert not other, f"run `make install`: {other}"
    conda = (ROOT/"environment.yml").read_text(encoding="utf-8")
    assert "==" not in conda and f"- python={settings.min_python}\n" in conda, "pins stand in settings.ini alone"


def test_the_readme_lists_every_notebook():
    readme = (ROOT/"README.md").read_text(encoding="utf-8")
    missing = [name for path in NOTEBOOKS if (name := path.relative_to(ROOT).as_posix()) != "nbs/index.ipynb" and f"({name})" not in readme]
    assert not missing, f"run `make readme`: {missing}"


def test_make_and_its_help_name_the_same_commands():
    text = (ROOT/"Makefile").read_text(encoding="utf-8")
    phony, documented = re.search(r"\.PHONY: (.*)", text)[1].split(), re.findall(r"^([a-z-]+):.*## ", text, flags=re.M)
    assert set(phony) == set(documented)
    for command in re.findall(r"make ([a-z]+(?:-[a-z]+)?)\b", (ROOT/"CONTRIBUTING.md").read_text(encoding="utf-8")): assert command in phony


def test_make_leaves_out_only_the_notebooks_that_the_smoke_study_runs():
    left_out = re.search(r"^STEP_NOTEBOOKS := (.*)$", (ROOT/"Makefile").read_text(encoding="utf-8"), re.M)[1]
    assert left_out.split("|") == [notebook for notebook, *_ in steps.STEPS.values()]


def test_nothing_unsafe_is_called():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "torch.load", "pickle.load", "pickle.loads"), f"{path.name} calls {name}"
                assert not any(k.arg == "trust_remote_code" for k in node.keywords), f"{path.name} trusts remote code"
