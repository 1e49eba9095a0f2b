"A folder may be called anything: no character of a name is read as a pattern, a format, an option or an address."
import json
import string
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image, ImageDraw

from docvlm import core, execution, execution as parameters, provenance, steps
from docvlm.core import Study, open_study
from docvlm.presets import get_preset
from docvlm.files import read_json, write_json
from docvlm.execution import execute
from docvlm.provenance import copy_sources, study_command

ROOT = Path(__file__).resolve().parent.parent
CHARACTERS = [c for c in string.printable if c.isprintable() and not c.isalnum() and c != "/"] + list("éß中🙂")
NASTY = "-a b!\"#$%&'()*+,;<=>?@[c]\\^`{preset}|~%20é::中 $HOME *.{}."
NAMES = [f"a{c}b" for c in CHARACTERS] + [c + "b" for c in CHARACTERS] + [
    "a[b]", "x*", "{}", "{0}", "{study}", "%s", "%20", "hf:", "a=b", "a..", "..a", "--preset", "~", "-", "$(id)", "<b>",
    "a" * 250, "a\u202fb\u200d", NASTY]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    "Pretends that the repository is a folder of a nasty name."
    folder = tmp_path/NASTY
    (folder/"nbs").mkdir(parents=True)
    for module in (core, execution, parameters, steps): monkeypatch.setattr(module, "root", lambda: folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_study_s_files_are_found_whatever_its_documents_are_called(clone, monkeypatch, name):
    study = Study(get_preset("smoke"), name)
    (clone/name).mkdir()
    assert study.name != Study(get_preset("smoke"), name + "!").name and len(study.name.encode()) < 255
    assert study.run_dir.parent == clone/"data"/"runs", "the name is one folder"
    assert all(c.isalnum() or c in "._-" for c in study.name)
    monkeypatch.setitem(steps.STEPS, "probe", ("probe", (), ("data/runs/{study}/results/systems.json",)))
    before = study.step("probe").inputs()
    write_json(study.results_dir/"systems.json", {"systems": {}})
    assert "files" not in before and "files" in study.step("probe").inputs()


@pytest.mark.parametrize("name", NAMES)
def test_papermill_reads_nothing_into_a_path(name):
    from papermill.parameterize import parameterize_path
    assert parameterize_path(execution._literal(Path("/x")/name/"a.ipynb"), {"preset": "nano"}) == f"/x/{name}/a.ipynb"


def test_a_notebook_runs_in_a_nasty_folder_and_gets_a_nasty_name(clone):
    cells = [nbformat.v4.new_code_cell("documents = ''", metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell("import os, sys\nprint([documents, os.getcwd(), sys.executable])")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), clone/"nbs"/"tiny.ipynb")
    execute("tiny", {"documents": NASTY}, clone/"executed"/"tiny.ipynb", clone/"log.txt", "tiny")
    said = read_json(clone/"executed"/"tiny.ipynb")["cells"][-1]["outputs"][0]["text"]
    assert "".join(said).strip() == str([NASTY, str(clone), sys.executable])


@pytest.fixture
def documents(tmp_path):
    "Three receipts to learn from and three to be asked about."
    for split in ("train", "test"):
        folder, lines = tmp_path/NASTY/"documents"/NASTY/split, []
        folder.mkdir(parents=True)
        for number in range(3):
            page = Image.new("RGB", (320, 200), "white")
            text = f"ACME\nDate 2024-03-0{number + 1}\nTotal {number}9.50"
            ImageDraw.Draw(page).text((20, 20), text, "black", font_size=24)
            page.save(folder/f"{number}.png")
            lines.append({"file_name": f"{number}.png", "question": "What is the total?", "answers": [f"{number}9.50"]})
        (folder/"metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder.parent


@pytest.mark.slow
def test_a_whole_study_in_a_nasty_folder_on_nasty_documents(tmp_path, documents):
    clone = copy_sources(open_study("smoke"), tmp_path/NASTY/NASTY)

    def run(code, *arguments):
        whole = study_command(open_study("smoke"), clone) | {"args": [sys.executable, "-c", code, *arguments]}
        done = subprocess.run(**whole, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    study = ("import sys; from docvlm.core import open_study; from docvlm.steps import run_study\n"
             "study = open_study('smoke', sys.argv[1])\n")
    assert f"ran {', '.join(steps.STEPS)}" in run(study + "run_study(study)", str(documents))
    assert "up to date, nothing to do" in run(study + "run_study(study)", str(documents))
    measure = "import sys; from docvlm.cli import measure; measure('ocr', preset='smoke', documents=sys.argv[1])"
    assert "benchmarks" in run(measure, str(documents))
    assert "ran report" in run(study + "run_study(study)", str(documents)), "the report sees what was measured"
    said = run(study + "print(study.paper_dir/'paper.html', end='')", str(documents))
    assert "OCR" in Path(said).read_text(encoding="utf-8") and Path(said).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    check = study + "from docvlm.provenance import check_study; print(check_study(study).drop(columns='first difference').to_json())"
    table = json.loads(run(check, str(documents)).splitlines()[-1])
    assert list(table["step"].values()) == list(steps.STEPS) and not any(table["differs"].values()), table


def test_a_check_finds_the_rerun_s_results_under_its_name_in_the_copy(clone, tmp_path, monkeypatch):
    "A study of documents is named after the way to them, which is another one from the copy."
    monkeypatch.setattr(provenance, "root", lambda: clone)
    study, copy = Study(get_preset("smoke"), "../é中"), clone/"copy"
    (tmp_path/"é中").mkdir()
    common = {"env": {}, "code": {}, "params": {}}
    for home, name, page in ((clone, study.name, b"a page"), (copy, study.name_in(copy), b"a page")):
        file = f"data/runs/{name}/pages/1.png"
        write_json(home/"data"/"runs"/name/"results"/"data.json", common | {"artefacts": [file], "pages": 3})
        (home/file).parent.mkdir()
        (home/file).write_bytes(page)
    assert study.name_in(copy) != study.name
    row = provenance.compare_folders(study, copy).iloc[0]
    assert row.differs == 0 and row.identical == 3, row
    (copy/file).write_bytes(b"another")
    assert provenance.compare_folders(study, copy).iloc[0]["first difference"].startswith("files.data/runs/")
    (copy/file).unlink()
    assert "missing" in provenance.compare_folders(study, copy).iloc[0]["first difference"]
