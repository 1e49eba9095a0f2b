"A reader of the repository sees what a notebook shows: its outputs are there, and they belong to its code."
import ast
import json
from pathlib import Path

import pytest

from docvlm.files import read_json
from docvlm.paper.readme import keep_outputs, outputs_digest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [path for path in sorted((ROOT/"nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts and path.stem != "index"]
MAIN = [path for path in NOTEBOOKS if path.parent == ROOT/"nbs" and path.name[0].isdigit()]
SHARE_WITH_OUTPUTS = .6
SILENT = (ast.Import, ast.ImportFrom, ast.Assert, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Pass)


def silent(statement):
    "Whether a statement shows nothing by its nature: an import, a definition, an assignment, an assertion, a block of these."
    if isinstance(statement, SILENT): return True
    if isinstance(statement, (ast.With, ast.For, ast.If)):
        return all(map(silent, [*statement.body, *getattr(statement, "orelse", [])]))
    call = statement.value.func if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) else None
    return isinstance(call, ast.Name) and (call.id.startswith("test_") or call.id == "validate_parameters")


def is_example(cell):
    "Whether a code cell is there for a reader: neither library, nor hidden, nor for the study alone, and it shows something."
    source, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
    if cell["cell_type"] != "code" or {"parameters", "machine"} & set(tags): return False
    if any(f"#| {word}" in source for word in ("export", "default_exp", "hide", "eval: false")): return False
    return not all(map(silent, ast.parse(source).body))


def share_with_outputs(notebook):
    "Share of a notebook's examples that have outputs; None without examples."
    found = [bool(cell["outputs"]) for cell in read_json(notebook)["cells"] if is_example(cell)]
    return sum(found)/len(found) if found else None


def stale(notebook):
    "Whether the outputs belong to other code than the notebook's, or to none."
    return read_json(notebook)["metadata"].get("docvlm", {}).get("outputs_of") != outputs_digest(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_outputs_belong_to_the_code(path): assert not stale(path), "run `make outputs`"


@pytest.mark.parametrize("path", MAIN, ids=lambda path: path.stem)
def test_main_notebooks_show_their_outputs(path):
    share = share_with_outputs(path)
    assert share is None or share >= SHARE_WITH_OUTPUTS, f"{share:.0%} of the examples have outputs; run `make outputs`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_output_of_a_cell_that_depends_on_the_machine(path):
    for cell in read_json(path)["cells"]:
        if "machine" in cell["metadata"].get("tags", []): assert not cell["outputs"], cell["id"]


# --- what the tests above find, on notebooks made for it

def code(id, source, *outputs, tags=()):
    return {"cell_type": "code", "id": id, "metadata": {"tags": [*tags]}, "execution_count": None, "outputs": [*outputs], "source": [source]}


def shown(text): return {"output_type": "stream", "name": "stdout", "text": [text]}


@pytest.fixture
def notebook(tmp_path):
    "Writes a notebook of the given cells, executed: `keep_outputs` has copied the outputs."
    def write(*cells):
        executed, source = tmp_path/"executed.ipynb", tmp_path/"source.ipynb"
        executed.write_text(json.dumps({"cells": cells, "metadata": {}}))
        source.write_text(json.dumps({"cells": [cell | ({"outputs": []} if "outputs" in cell else {}) for cell in cells], "metadata": {}}))
        keep_outputs(executed, source)
        return source
    return write


def edit(path, change):
    content = read_json(path)
    change(content["cells"])
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name, change, outcome", [
    ("code", lambda cells: cells[0].update(source=["1 + 2"]), True),
    ("a new cell", lambda cells: cells.append(code("b", "3")), True),
    ("a cell less", lambda cells: cells.pop(0), True),
    ("a comment", lambda cells: cells[0].update(source=["1 + 1  # two"]), False),
    ("layout", lambda cells: cells[0].update(source=["1+1"]), False),
    ("text", lambda cells: cells.append({"cell_type": "markdown", "id": "c", "metadata": {}, "source": ["Text"]}), False),
    ("a tag", lambda cells: cells[0]["metadata"].update(tags=["machine"]), False)])
def test_a_change_of_code_makes_outputs_stale(notebook, name, change, outcome):
    path = notebook(code("a", "1 + 1", shown("2")), code("p", "preset = 'nano'", tags=["parameters"]))
    assert not stale(path)
    assert stale(edit(path, change)) == outcome
    assert not stale(edit(path, lambda cells: None)) or outcome


def test_nbdev_clean_keeps_the_record(notebook, monkeypatch):
    import nbdev.clean
    path = notebook(code("a", "1 + 1", shown("2")))
    monkeypatch.chdir(ROOT)
    nbdev.clean.nbdev_clean(str(path))
    assert not stale(path) and read_json(path)["cells"][0]["outputs"]


def test_missing_outputs_are_found(notebook):
    cells = [code("a", "print(1)", shown("1")), code("b", "2 + 2"), code("c", "import os"), code("d", "#| export\nx = 1"), code("e", "assert True"),
             code("f", "#| hide\n3"), code("g", "def f(): return 1"), code("h", "with open('a') as f: assert f"), code("i", "test_eq(1, 1)"),
             code("j", "4", tags=["machine"]), code("k", "y = 2")]
    assert share_with_outputs(notebook(*cells)) == .5
    assert share_with_outputs(notebook(*cells[2:])) is None
    assert share_with_outputs(edit(notebook(*cells), lambda all: [cell.update(outputs=[]) for cell in all])) == 0


def test_outputs_that_pass_are_dropped(notebook):
    path = notebook(code("a", "1", shown("50%|####  | 1/2 [00:01<00:01, 1.0it/s]"), shown(f"wrote {ROOT}/a"), {"output_type": "stream", "name": "stderr", "text": ["x"]}),
                    code("b", "2", shown("2 s"), tags=["machine"]))
    assert not any(cell["outputs"] for cell in read_json(path)["cells"])


def test_the_pieces_in_which_a_kernel_sends_a_text_do_not_matter(notebook):
    one = read_json(notebook(code("a", "1", shown("first\nsecond\n"))))["cells"][0]["outputs"]
    assert read_json(notebook(code("a", "1", shown("fir"), shown("st\nsecond"), shown("\n"))))["cells"][0]["outputs"] == one
