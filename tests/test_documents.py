"Generated pages: every look prints what is asked about, the same in every process, and an edited template is noticed."
import ast
import hashlib
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from docvlm import core, data, documents, steps
from docvlm.core import Study
from docvlm.documents import DOC_TYPES, make_page, make_pages
from docvlm.files import write_json
from docvlm.pages import rendering
from docvlm.pages.entities import Cast
from docvlm.pages.rendering import SEEN_FONTS, UNSEEN_FONTS, DoesNotFit, within
from docvlm.presets import get_preset

ROOT = Path(__file__).resolve().parent.parent
LOOKS = [(name, look, unseen) for name, kind in DOC_TYPES.items() for unseen in (False, True)
         for look in (kind.unseen if unseen else kind.seen)]


def drawn(name, look, unseen, seed):
    "A page of that look, and all questions about it."
    kind, cast = DOC_TYPES[name], Cast(seed, "test" if unseen else "train")
    content = kind.make(cast)
    found = kind.ask(cast, content)
    families = [f for f in (UNSEEN_FONTS if unseen else SEEN_FONTS) if name != "receipts" or f in documents.RECEIPT_FONTS]
    return kind.draw(content, look, families[seed % len(families)], seed % 5 == 0, cast.rng), found


@pytest.mark.parametrize("name, look, unseen", LOOKS, ids=[look for _, look, _ in LOOKS])
def test_a_look_prints_every_answer_at_its_mark(name, look, unseen):
    pages = 0
    for seed in range(24):
        try: page, found = drawn(name, look, unseen, seed)
        except DoesNotFit: continue
        pages += 1
        assert page.template == look
        for question in (q for q in found if q.where):
            words = {word.strip(".,;:") for word, box in page.words if within(box, page.marks[question.where])}
            assert {word.strip(".,;:") for word in question.answers[0].split()} <= words, (question, words)
    assert pages >= 4, f"only {pages} of 24 contents fit {look}"


def digest(pages): return hashlib.sha256(b"".join(p.image.tobytes() + repr((p.questions, p.words)).encode() for p in pages)).hexdigest()


def test_pages_are_the_same_in_every_process():
    code = ("import sys; sys.path.insert(0, 'tests'); from test_documents import digest; from docvlm.documents import make_pages\n"
            "print(digest(make_pages(18, 3, 'test')))")
    told = {subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=None, capture_output=True, text=True, check=True).stdout.strip()
            for _ in range(2)}
    assert told == {digest(make_pages(18, 3, "test"))}
    assert digest([make_page("letters", 2)]) == digest([make_page("letters", 2)]), "what was drawn before does not matter"


def test_splits_share_no_looks_or_fonts_beyond_the_seen():
    for kind in DOC_TYPES.values(): assert len(kind.seen) >= 5 and len(kind.unseen) >= 2 and not set(kind.seen) & set(kind.unseen)
    pages = [make_page(name, seed, "test", unseen=True) for name in DOC_TYPES for seed in range(3)]
    assert all(page.template in DOC_TYPES[page.doc_type].unseen and page.font in UNSEEN_FONTS and not page.seen for page in pages)


def test_photographs_take_their_boxes_along():
    pages = [page for page in make_pages(40, 1, doc_types=["receipts"]) if "photograph" in page.degradations]
    assert 8 <= len(pages) <= 32, "half of the receipts are photographed"
    clean = {page.doc_id: page for page in make_pages(40, 1, doc_types=["receipts"], strength=0)}
    for page in pages:
        flat = clean[page.doc_id]
        assert [word for word, _ in page.words] == [word for word, _ in flat.words]
        assert page.image.width == flat.image.width + 28 and not flat.degradations
        for question in (q for q in page.questions if q.evidence):
            words = {word.strip(".,;:") for word, box in page.words if within(box, question.evidence)}
            assert {word.strip(".,;:") for word in question.answers[0].split()} <= words


def test_what_does_not_fit_is_drawn_again(monkeypatch):
    compose, tries = documents._compose, []

    def sometimes(*arguments):
        tries.append(arguments)
        if len(tries) < 4: raise DoesNotFit("too wide")
        return compose(*arguments)

    monkeypatch.setattr(documents, "_compose", sometimes)
    assert make_page("forms", 1).questions and len(tries) >= 4


# --- the fingerprint

@pytest.fixture
def clone(tmp_path, monkeypatch):
    "A repository of links with its own templates."
    for name in ("nbs", "docvlm"): (tmp_path/name).symlink_to(ROOT/name)
    (tmp_path/"data").mkdir()
    for path in (ROOT/"data").iterdir():
        if path.name in ("nano", "sources.csv"): (tmp_path/"data"/path.name).symlink_to(path)
    shutil.copytree(ROOT/"data"/"templates", tmp_path/"data"/"templates")
    for module in (core, data, rendering, steps): monkeypatch.setattr(module, "root", lambda: tmp_path)
    monkeypatch.setattr("docvlm.presets.root", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("change", ["edited", "added", "renamed", "removed"])
def test_an_edited_template_makes_the_data_step_stale(clone, change):
    study, template = Study(get_preset("smoke")), clone/"data"/"templates"/"form_ruled.typ"
    step = study.step("data")
    result = {"params": {}, "key": step.key()}
    write_json(step.path, result | {"content": steps.content_digest(result)})
    assert step.state() == "fresh"
    (template.parent/"notes.txt").write_text("nobody reads this")
    assert step.state() == "fresh"
    if change == "edited": template.write_text(template.read_text().replace("0.7em", "0.8em"))
    elif change == "added": (template.parent/"form_new.typ").write_text(template.read_text())
    elif change == "renamed": template.rename(template.with_name("form_other.typ"))
    else: template.unlink()
    assert step.state() == "inputs, code or parameters have changed"


def test_prepared_pages_of_an_edited_template_are_others(clone, monkeypatch):
    study, made = Study(get_preset("smoke")), []
    monkeypatch.setattr(data, "_prepare", lambda study, folder: (made.append(folder), folder.mkdir(parents=True)))
    first = data.prepared_folder(study)
    assert data.prepared_folder(study) == first and made == [first]
    with (clone/"data"/"templates"/"lib.typ").open("a") as file: file.write("// a comment\n")
    assert data.prepared_folder(study) != first and len(made) == 2


def test_templates_are_no_input_of_other_pages(clone):
    mine = clone/"mine"
    for split in ("train", "test"): (mine/split).mkdir(parents=True)
    assert "templates" not in Study(get_preset("smoke"), "mine").step("data").inputs()
    assert "templates" not in Study(get_preset("qwen2-vl-2b")).step("data").inputs()


# --- names

def test_no_public_name_of_the_pages_is_defined_twice():
    places = defaultdict(set)
    for path in sorted((ROOT/"docvlm").rglob("[a-z]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)): places[node.name].add(path.relative_to(ROOT/"docvlm").as_posix())
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name): places[target.id].add(path.relative_to(ROOT/"docvlm").as_posix())
    twice = {name: sorted(files) for name, files in places.items() if name[0] != "_" and len(files) > 1
             and any(file == "documents.py" or file.startswith("pages/") for file in files)}
    assert not twice, json.dumps(twice, indent=1)
