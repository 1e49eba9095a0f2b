"The pages that the nano base practises on: the same everywhere, apart from the study's, and whole at any size."
import ast
import re
import string
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from docvlm.files import StudyError
from docvlm.nano import letters, sheet, tasks
from docvlm.nano.practice import draw_text_page, scan_page
from docvlm.nano.tasks import ADDITIONS, NAMINGS, ASKINGS, PRACTICE_LAYOUTS, WORDINGS, arithmetic_text, draw_task_page, number_questions
from docvlm.pages.rendering import SEEN_FONTS

ROOT = Path(__file__).resolve().parent.parent


def test_fonts_are_listed_once_and_each_has_one_role():
    rows = sheet.font_list()
    assert len({(row["package"], row["weight"]) for row in rows}) == len(rows)
    assert len({(row["package"], row["role"], row["family"]) for row in rows}) == len({row["package"] for row in rows})
    assert all(re.fullmatch(r"[0-9a-f]{64}", row["sha256"]) for row in rows)


def test_a_font_that_was_changed_is_refused(tmp_path, monkeypatch):
    "A registry that serves another file under a listed version."
    row = sheet.font_list()[0]

    def pack(command, cwd, **_):
        member = tmp_path/"x.woff"
        member.write_bytes(b"another font")
        with tarfile.open(Path(cwd)/"x.tgz", "w:gz") as tar: tar.add(member, f"package/files/{row['package']}-latin-{row['weight']}-normal.woff")

    monkeypatch.setattr(subprocess, "run", pack)
    monkeypatch.setattr(sheet, "root", lambda: tmp_path)
    with pytest.raises(StudyError, match=f"{row['package']}.*differs from its sha256"): sheet.fetch_fonts()
    assert not list(tmp_path.rglob("data/cache/fonts/*.woff"))


def test_a_missing_font_says_how_to_get_it(tmp_path, monkeypatch):
    family = sheet.font_families("held-out")[0]
    monkeypatch.setattr(sheet, "_font_file", lambda row: tmp_path/"absent.woff")
    sheet.glyphs.cache_clear()
    with pytest.raises(StudyError, match="fetch_fonts"): sheet.glyphs(family, False)
    with pytest.raises(ValueError, match="Unknown font family 'Nonsense'"): sheet.glyphs("Nonsense", False)


@pytest.mark.parametrize("draw", [draw_text_page, draw_task_page])
def test_one_seed_is_one_page(draw):
    pages = [draw(336, 280, np.random.default_rng(7)) for _ in range(2)]
    scans = [scan_page(page, np.random.default_rng(8), 0.9) for page in pages]
    assert np.array_equal(scans[0][0], scans[1][0]) and scans[0][1] == scans[1][1]
    assert pages[0].questions == pages[1].questions and pages[0].kinds == pages[1].kinds
    assert arithmetic_text(np.random.default_rng(5)) == arithmetic_text(np.random.default_rng(5))


@pytest.mark.parametrize("size", [(28, 28), (112, 28), (56, 112), (224, 784), (784, 168)])
def test_text_fills_any_size(size):
    for seed in range(8):
        page = draw_text_page(*size, np.random.default_rng(seed))
        pixels, characters = scan_page(page, np.random.default_rng(seed))
        assert page.characters and len(characters) == len(page.characters)
        assert pixels.shape == (size[1], size[0], 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize("layout", [*PRACTICE_LAYOUTS, None])
def test_every_answer_stands_where_it_is_said_to(layout):
    "Also on pages that are too small or too long for the layout."
    for seed, size in enumerate([(112, 112), (224, 224), (448, 392), (168, 784), (784, 168)]*2):
        page = draw_task_page(*size, np.random.default_rng(seed), layout=layout)
        page.check()
        assert len(page.kinds) == len(page.questions) <= 20
        assert len({question.lower() for question, *_ in page.questions}) == len(page.questions)


def test_a_heavy_scan_keeps_the_whole_page():
    for seed in range(30):
        page = draw_text_page(280, 224, np.random.default_rng(seed))
        _, characters = scan_page(page, np.random.default_rng(seed), 1.0)
        before = [0 <= x < 280 and 0 <= y < 224 for _, x, y in page.characters]
        assert all(0 <= x < 280 and 0 <= y < 224 for (_, x, y), inside in zip(characters, before) if inside)


def test_numbers_are_worked_out_right():
    asked = {kind: answer for kind, _, answer, _ in number_questions(np.random.default_rng(3), ["Ab", "Cd", "Ef", "Gh"], [3, 10.5, 7, 1.5])}
    assert asked["largest"] == "Cd" and asked["smallest"] == "Gh" and asked["second"] == "Ef"
    assert (asked["total"], asked["mean"], asked["count"]) == ("22", "5.5", "4")
    assert int(asked["over"]) + int(asked["under"]) == 4


def test_equal_numbers_have_no_largest():
    kinds = {kind for kind, *_ in number_questions(np.random.default_rng(0), ["Ab", "Cd"], [4, 4])}
    assert not kinds & {"largest", "smallest", "more", "less", "beats"} and "sum" in kinds


def pattern(wording):
    "A wording with all its slots alike."
    parts = [literal + "{}"*(name is not None) for literal, name, *_ in string.Formatter().parse(wording)]
    return re.sub(r"\W+", " ", "".join(parts).replace("{}", " slot ").lower()).strip()


def test_no_wording_is_the_study_s():
    own = [wording for wordings in WORDINGS.values() for wording in wordings]
    own += [opening.replace("{x}", naming).replace("{also}", addition) for opening in ASKINGS
            for namings in NAMINGS.values() for naming in namings for addition in ADDITIONS]
    own += [wording for wordings in letters._letter_wordings.values() for wording in wordings]
    own += [wording for _, wordings in letters._shop.values() for wording in wordings] + list(letters._total_wordings)
    own += [text for sentence, asked in letters.SENTENCES for text in (sentence, *(w for wordings in asked.values() for w in wordings))]
    studied = {pattern(node.value) for path in (ROOT/"docvlm/pages").glob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
               if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"[?.]$|\{", node.value) and _parses(node.value)}
    assert len(studied) > 60
    assert not {pattern(wording.replace("{of}", "")) for wording in own} & studied


def _parses(text):
    try: return bool(list(string.Formatter().parse(text)))
    except ValueError: return False


def test_default_fonts_need_no_network():
    assert set(SEEN_FONTS) <= set(sheet.font_families()) and tasks.draw_task_page.__defaults__[0] == tuple(SEEN_FONTS)
