"The repository is what its notebooks say: in sync, clean, pinned alike, imports one way."
import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (  # a module imports from layers above its own and from its left neighbours
    ("protocols", "metadata", "precision", "core", "parameters", "execution", "metrics", "rendering", "entities"), ("steps",), ("trust", "outputs"), ("layout", "practice", "sketches", "plots", "scenes", "scanning", "statistics"), ("questions",),
    ("templates", "charts"), ("infographics", "bills", "billing"), ("contents",), ("documents",), ("images", "sources", "hub", "leakage", "folder"),
    ("data",), ("model", "packing", "cost", "plan"), ("features",), ("training",), ("refusals", "ocr", "lookup", "endpoint"), ("answering",), ("asking", "evaluation", "submission"),
    ("ablation", "taxonomy", "gallery", "signals", "failures", "latency"), ("systems",),
    ("recipes", "savings", "equivalence", "rates", "benchmark"), ("tables", "figures", "readme", "speed", "report"),
    ("nano", "objectives", "pretraining", "reading"), ("demo", "cli"))
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))


def imports(module):
    tree = ast.parse((ROOT/"docvlm"/f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            package = node.module == "docvlm" or (node.level == 1 and not node.module)
            if package: yield from (alias.name for alias in node.names)
            elif node.level == 1 or node.module.startswith("docvlm."): yield node.module.removeprefix("docvlm.")


def test_imports_run_one_way():
    place = {module: (i, j) for i, layer in enumerate(LAYERS) for j, module in enumerate(layer)}
    modules = {p.stem for p in (ROOT/"docvlm").glob("[a-z]*.py")}
    assert modules <= set(place), f"give {modules - set(place)} a layer"
    upward = [f"{module} imports {other}" for module in modules for other in imports(module) if place[other] >= place[module]]
    assert not upward, upward


@pytest.mark.parametrize("module", ["metrics", "documents", "ocr", "tables", "figures", "report", "readme"])
def test_light_modules_do_not_import_torch(module):
    code = f"import docvlm.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_library_is_exported_and_notebooks_are_clean(tmp_path):
    for name in ("nbs", "docvlm", "settings.ini", "setup.py", "README.md"):
        source = ROOT/name
        shutil.copytree(source, tmp_path/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")) if source.is_dir() else shutil.copy(source, tmp_path/name)
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([Path(sys.executable).parent/command], cwd=tmp_path, check=True, capture_output=True)
    for name in ("nbs", "docvlm"):
        for file in sorted(f for f in (tmp_path/name).iterdir() if f.suffix in (".py", ".ipynb")):
            assert file.read_bytes() == (ROOT/name/file.name).read_bytes(), f"{name}/{file.name}: run nbdev_export and nbdev_clean"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_carry_no_errors_paths_or_large_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", f"{path.name} holds an error"
            text = json.dumps(output)
            assert str(ROOT) not in text and "/home/" not in text and "/root/" not in text, f"{path.name} holds a machine path"
            assert len(text) < 400_000, f"{path.name} holds an output of {len(text)} characters"


def test_modules_stay_small():
    long = {p.name: n for p in (ROOT/"docvlm").glob("[a-z]*.py") if (n := len(p.read_text(encoding="utf-8").splitlines())) > 330}
    assert not long, f"split by meaning: {long}"


def test_pins_agree():
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT/"settings.ini")
    pins = parser["DEFAULT"]["requirements"].split() + parser["DEFAULT"]["dev_requirements"].split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    conda = re.findall(r"^ {4}- (\S+==\S+)$", (ROOT/"environment.yml").read_text(), re.M)
    assert sorted(conda) == sorted(pins), "environment.yml and settings.ini differ"


def test_nothing_unsafe_is_called():
    for path in (ROOT/"docvlm").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "torch.load", "pickle.load", "pickle.loads"), f"{path.name} calls {name}"
                assert not any(k.arg == "trust_remote_code" for k in node.keywords), f"{path.name} trusts remote code"
