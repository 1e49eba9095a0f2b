"Documents in any script: sources, results by language, unknown characters, fonts, text of mixed direction."
import ctypes
import json
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pypdfium2 as pdfium
import pypdfium2.raw as raw
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage, ImageDraw

import datasets.config
from docvlm import core, evaluation, report
from docvlm.analysis.errors import Case, classify, printable_line
from docvlm.analysis.extraction import anls_star, count_values, parts_of
from docvlm.analysis.metrics import anls, anls_by_character, characters, relaxed_accuracy, relaxed_accuracy_strict
from docvlm.apps.ask import answers_html
from docvlm.core import drawable_text, font_files, open_study, save_figure
from docvlm.data import summarize_split
from docvlm.engine.answering import count_unknown, read_answer
from docvlm.files import StudyError
from docvlm.inputs import hub
from docvlm.inputs.folder import load_folder
from docvlm.inputs.sources import ROW_FEATURES, language_name, read_sources, rows_dataset
from docvlm.inputs.tables import import_documents
from docvlm.paper.readme import answer_types
from docvlm.paper.tables import by_group, quoted

REPO = Path(__file__).parents[1]
SOURCES = {source.name: source for source in read_sources()}
ARABIC, HEBREW, HINDI, THAI, TAMIL = "شركة النور (12).", "חשבונית 12.5!", "किताब क्षि", "น้ำดื่ม", "தமிழ்"
SHOWN = [ARABIC, HEBREW, HINDI, THAI, "한국어 김민수", "中文 北京大学", "日本語 がぎぐ", "Ёлка ΐ Ångström ₩ ₹ €", "Mixed: total شركة 12.5 USD"]


def test_ascii_scores_are_those_of_code_points_and_of_the_harness():
    from rapidfuzz.distance import Levenshtein
    rng, letters = np.random.default_rng(0), list("abc 12.,%$-AB")
    for _ in range(3000):
        a, b = ("".join(rng.choice(letters, rng.integers(0, 9))) for _ in range(2))
        same = Levenshtein.normalized_similarity(*(" ".join(text.lower().split()) for text in (a, b)))
        assert anls(a, [b]) == anls_by_character(a, [b]) == (same if same >= .5 else 0)


@pytest.mark.parametrize("text", SHOWN + [TAMIL, "👨‍👩‍👧 family", "ㄱㅏ", "e\u0301"])
def test_a_text_is_itself_in_every_form_and_direction(text):
    for form in ("NFC", "NFD"):
        marked = f"\u2067\u200f{unicodedata.normalize(form, text)}\u200e\u2069"
        assert anls(marked, [text]) == anls_by_character(text, [marked]) == relaxed_accuracy(marked, [text]) == 1
        assert relaxed_accuracy_strict(marked, [text]) == 1 and classify(Case(marked, [text], 1.0)) == "correct"
    frame = pd.DataFrame({"prediction": [text], "answers": [[marked]]})
    assert count_values(frame).tolist() == [[1, 1, 1]] and anls_star(frame) == 1


def test_characters_are_what_a_reader_counts():
    assert [len(characters(text)) for text in ("abc", "김민수", "क्षि", "น้ำดื่ม", "👨‍👩‍👧", "가", "")] == [3, 3, 1, 3, 1, 1, 0]
    assert anls_by_character("김민호", ["김민수"]) == anls("김민호", ["김민수"]) == pytest.approx(2/3)
    assert anls("क्षा", ["क्षि"]) == .75 and anls_by_character("क्षा", ["क्षि"]) == 0


@pytest.mark.parametrize("answer, target, kind", [
    ("我叫王小明", "王小明", "extra words"), ("小明", "王小明", "truncated"), ("김민수입니다", "김민수", "extra words"), ("東京都新宿区", "東京都", "extra words"),
    ("否", "是", "wrong yes/no"), ("아니오", "예", "wrong yes/no"), ("2024年3月5日", "2024-03-05", "format"), ("2024년 3월 5일", "5 Mar 2024", "format"),
    ("١٢٬٥٠٠", "12,500", "format"), ("12,000원", "12000", "format"), ("￥１２", "12", "format"), ("किताप", "किताब", "misread characters"),
    ("कि", "का", "other"), ("שלום", "שלומ", "misread characters"), ("น้ำดื่มเย็น", "น้ำดื่ม", "extra words"), ("नई किताब", "किताब", "extra words")])
def test_errors_have_their_kind_in_any_script(answer, target, kind):
    assert classify(Case(answer, [target], 0.0)) == kind


def test_lists_and_lines_of_other_scripts():
    assert parts_of("甲；乙; 丙") == ["甲", "乙", "丙"] and parts_of("א؛ ב") == ["א", "ב"]
    assert printable_line("می\u200cخواهم\u202e") == "می\u200cخواهم" and printable_line("क्षि"*70).count("क्षि") == 59
    assert str(quoted("क्षि"*200)).count("क्षि") == 160, "never half a character"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path/"datasets")


def parquet(folder, source, columns, kinds):
    "A local copy of a source in two files under the pattern of data/sources.csv."
    count = len(columns["image"])
    for shard in range(2):
        part = {name: values[shard*count//2:(shard + 1)*count//2] for name, values in columns.items()}
        path = folder/source.files.replace("*", f"{shard:05d}-of-00002")
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(part, features=Features(kinds)).to_parquet(path)
    return replace(source, hub_id=str(folder), samples=count)


PAGES = [PILImage.new("RGB", (30 + n, 20), (n, 90, 200)) for n in range(4)]


@pytest.mark.parametrize("name", ["MTVQA train", "MTVQA test"])
def test_mtvqa_has_a_row_for_each_question_and_its_language(tmp_path, name):
    pairs = [repr([{"question": "합계는?", "answer": "12,000원"}, {"question": "날짜?", "answer": "5월"}]), repr([{"question": "ما الاسم؟", "answer": "شركة"}]),
             "[{'question': 'no answer'}]", repr([{"question": "何?", "answer": ""}])]
    source = parquet(tmp_path/"copy", SOURCES[name], {"image": PAGES, "id": ["3", "5", "7", "9"], "qa_pairs": pairs, "lang": ["KR", "AR", "DE", "JA"]},
                     {"image": Image(), "id": Value("string"), "qa_pairs": Value("string"), "lang": Value("string")})
    hub.check_sources([source])
    rows, skipped, _ = hub.load_hub(source)
    assert rows.features == ROW_FEATURES and rows["question"][:] == ["합계는?", "날짜?", "ما الاسم؟"]
    assert rows["language"][:] == ["Korean", "Korean", "Arabic"] and rows["answers"][:] == [["12,000원"], ["5월"], ["شركة"]]
    assert len(set(rows["question_id"][:])) == 3 and [row["images"][0].size for row in rows] == [(30, 20), (30, 20), (31, 20)]
    assert rows["doc_id"][0] == rows["doc_id"][1] != rows["doc_id"][2] and set(rows["benchmark"]) == {"mtvqa"}
    assert [skip["reason"] for skip in skipped] == ["not a list of questions and answers", "no answers"] and skipped[0]["row"] == f"{name} 7"
    assert hub.first_look(source, 1)["language"][:] == ["Korean"]*2


def test_ocrbench_gives_its_chinese_questions_only(tmp_path):
    kinds = ["cognition VQA cn", "full-page OCR cn", "cognition VQA en", "reasoning VQA cn"]
    source = parquet(tmp_path/"copy", SOURCES["OCRBench v2 test, Chinese questions"],
                     {"image": PAGES, "type": kinds, "question": ["日期?", "b", "c", "为什么?"], "answers": [["五月"], ["b"], ["c"], ["因为", "是"]]},
                     {"image": Image(), "type": Value("string"), "question": Value("string"), "answers": datasets.List(Value("string"))})
    rows, skipped, _ = hub.load_hub(source)
    assert rows["question"][:] == ["日期?", "为什么?"] and set(rows["language"]) == {"Chinese"} and rows["answers"][1] == ["因为", "是"]
    assert rows[1]["images"][0].size == (33, 20) and not skipped


@pytest.mark.parametrize("benchmarks", ["mpdocvqa", "dude,ocrbench2"])
def test_benchmarks_without_training_questions_are_refused_before_any_download(monkeypatch, benchmarks):
    from docvlm import data
    for name in ("check_sources", "load_hub"): monkeypatch.setattr(data, name, lambda source: pytest.fail("the hub was asked"))
    want = f"No training questions: .*no train split for {benchmarks.replace(',', ', ')}. .*: docvqa, infovqa, chartqa, mtvqa .*benchmarks=docvqa,{benchmarks}"
    with pytest.raises(StudyError, match=want): data.load_sources(open_study("qwen2-vl-2b", settings={"benchmarks": benchmarks}))


def test_a_hub_study_uses_the_benchmarks_that_it_names(monkeypatch):
    from docvlm import data
    asked = []
    monkeypatch.setattr(data, "check_sources", asked.extend)
    monkeypatch.setattr(data, "load_hub", lambda source: (_ for _ in ()).throw(StudyError(source.name)))
    for settings, expected in (({}, {"docvqa", "infovqa", "chartqa"}), ({"benchmarks": "mtvqa,ocrbench2"}, {"mtvqa", "ocrbench2"})):
        asked.clear()
        with pytest.raises(StudyError): data.load_sources(open_study("qwen2-vl-2b", settings=settings))
        assert {source.benchmark for source in asked} == expected
    preset = open_study("qwen2-vl-2b").preset
    assert "language of the question" in preset.prompt_suffix["mtvqa"] and preset.max_new_tokens["mtvqa"] == 32


@pytest.mark.parametrize("text, name", [("ko", "Korean"), ("KOREAN", "Korean"), ("zh-Hant", "Chinese (Traditional)"), ("ar_EG", "Arabic"), ("", ""), ("kr_NG", "Kanuri"),
                                        ("Elvish", "Elvish"), ("a/b", "a/b"), ("한국어", "한국어"), ("x"*4000, "x"*4000)])
def test_languages_are_named_in_one_way(text, name): assert language_name(text) == name


def page(text):
    "A page with a text."
    image = PILImage.new("RGB", (80, 40), "white")
    ImageDraw.Draw(image).text((5, 10), text, "black")
    return image


def documents(folder, lines):
    "A documents folder with these lines in both halves."
    for split in ("train", "test"):
        (folder/split).mkdir(parents=True)
        page("train" if split == "train" else "other").save(folder/split/"a.png")
        text = "".join(json.dumps({"file_name": "a.png", "question": f"Q{n}?", "answers": ["x"]} | line) + "\n" for n, line in enumerate(lines))
        (folder/split/"metadata.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_rows_of_a_folder_have_a_language_from_a_column_or_a_label(tmp_path):
    lines = [{"language": "ko"}, {"question_types": ["hindi", "scan"]}, {"question_types": ["form"]}, {"language": "de", "question_types": ["hindi"]}, {"language": 3.5},
             {"language": ["ko"]}]
    splits, skipped = load_folder(documents(tmp_path/"d", lines), tmp_path/"pages")
    rows = rows_dataset(splits["test"])
    assert rows["language"][:] == ["Korean", "Hindi", "", "German", "3.5"]
    assert [skip["reason"] for skip in skipped] == ["language is not a text"]*2
    assert summarize_split(rows)["by_language"] == {name: {"pages": 1, "questions": 1} for name in ("3.5", "German", "Hindi", "Korean")}


def test_the_language_column_of_a_table_is_imported(tmp_path):
    (tmp_path/"in").mkdir()
    for name in "ab": page(name).save(tmp_path/"in"/f"{name}.png")
    (tmp_path/"in/labels.csv").write_text("file,question,answer,lang\na.png,합계?,12,ko\nb.png,Total?,13,\n", encoding="utf-8")
    report_ = import_documents(tmp_path/"in", tmp_path/"out", test_share=.5)
    lines = [json.loads(line) for split in ("train", "test") for line in (tmp_path/"out"/split/"metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(line.get("language", "") for line in lines) == ["", "ko"] and not any("not read" in note for note in report_["notes"])


def predictions(**columns):
    count = len(columns["language"])
    given = {"doc_id": [f"d{n}" for n in range(count)], "pages": [[1]]*count, "benchmark": "docvqa", "question": "?", "answers": [["क्षि"]]*count, "prediction": "क्षा",
             "score": .75, "confidence": .5}
    return pd.DataFrame(given | columns)


def test_results_by_language_have_intervals_and_count_characters_too():
    base = predictions(language=["Hindi", "Hindi", "Hindi", "Korean", ""])
    languages = base.language.where(base.language != "")
    found = evaluation.compare_groups(base, [base.assign(score=[1, 1, .75, 1, 0])], [42], 200, languages)
    assert list(found) == ["Hindi", "Korean"] and found["Hindi"]["questions"] == 3 and len(found["Hindi"]["delta"]["ci95"]) == 2
    assert found["Korean"]["delta"]["ci95"] is None, "one document"
    counted = evaluation.compare_groups(base, [base], [42], 200, languages, anls_by_character)
    assert counted["Hindi"]["metric"] == "anls_by_character" and counted["Hindi"]["baseline"]["value"] == 0


class Tokenizer:
    "Knows ASCII; 0 is the padding, 1 the end, 2 unknown."
    pad_token_id, eos_token_id, unk_token_id = 0, 1, 2
    def encode(self, text): return [ord(c) if c.isascii() else self.unk_token_id for c in text]
    def decode(self, ids, **_): return "".join(chr(i) for i in ids if i > 2)


def test_an_answer_with_unknown_characters_shows_them_and_is_not_sure(monkeypatch):
    from docvlm.engine import answering
    monkeypatch.setattr(answering, "encode_text", lambda tokenizer, text: tokenizer.encode(text))
    tokenizer = Tokenizer()
    ids = tokenizer.encode
    assert read_answer(tokenizer, ids("Total?"), ids(" 12 "), .9) == ("12", .9)
    assert read_answer(tokenizer, ids("Total?"), ids("김민수"), .9) == ("���", 0)
    assert read_answer(tokenizer, ids("합계"), ids("12"), .9) == ("12", 0) and read_answer(tokenizer, [], [], .9) == ("", .9)
    frame = predictions(language=["ko"]*3, question=["Total?", "합계?", "Name?"], answers=[["12"], ["9"], np.array(["金", "김"])], confidence=[.9, .3, .5])
    found = count_unknown(tokenizer, frame, [frame, frame.assign(confidence=[1., .1, .1])])
    assert found["characters"] == "".join(sorted("합계金김")) and (found["in_question"], found["in_answers"], found["questions"]) == (1, 1, 2)
    assert found["confidence"]["unknown"]["ours"] == pytest.approx(.25) and found["confidence"]["known"]["base"] == .9
    assert count_unknown(tokenizer, frame[:1], [frame[:1]]) is None
    tokenizer.unk_token_id = tokenizer.eos_token_id  # as Qwen2's
    assert count_unknown(tokenizer, frame, [frame]) is None and read_answer(tokenizer, ids("합계"), ids("12"), .9) == ("12", .9)


def test_the_fonts_have_every_script_that_the_report_says_they_have():
    assert all(path.is_file() for path in font_files().values())
    for text in (*SHOWN, "հայերեն", "ქართული", "✓ ✗ − … “”"): assert drawable_text(text) == text, text
    assert drawable_text(f"a {TAMIL} b") == "a ‹Tamil: 3 characters› b" and drawable_text("\ue000\U000e0fff") == "‹U+E000›\U000e0fff"
    assert drawable_text("বাংলা") == "‹Bengali: 2 characters›"


def test_a_figure_in_any_script_has_no_missing_glyph_and_the_same_bytes(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(core, "root", lambda: tmp_path)
    monkeypatch.setattr(core.Study, "figures_dir", tmp_path)
    font_files.cache_clear()
    def draw():
        figure, axis = plt.subplots()
        axis.set(title=ARABIC, xticks=range(len(SHOWN)), xticklabels=SHOWN)
        axis.text(0, 0, TAMIL)
        save_figure(figure, open_study("smoke"), "any")
        plt.close(figure)
        return (tmp_path/"any.svg").read_bytes()
    try: assert draw() == draw()
    finally: font_files.cache_clear()
    assert not [w for w in recwarn if "missing from" in str(w.message)]


def font_of(place, index):
    "The name of the font that a character of a page is drawn with."
    buffer, flags = ctypes.create_string_buffer(200), ctypes.c_int()
    raw.FPDFText_GetFontInfo(place, index, buffer, 200, flags)
    return buffer.value.decode()


def test_pdf_text_is_there_in_its_own_direction_and_missing_letters_are_named(tmp_path):
    text = "\n\n".join(f"Answer: {quoted(shown)} and 3.0 points." for shown in [*SHOWN, TAMIL])
    report.to_pdf(text, "Title", tmp_path/"a.pdf")
    with pdfium.PdfDocument(tmp_path/"a.pdf") as pdf:
        place = pdf[0].get_textpage()
        read = place.get_text_range()
        fonts = {character: font_of(place, read.index(character)) for character in "민京が"}
    read = re.sub(r"\s+", " ", read)
    assert all("NotoSansCJK" in fonts[character] for character in "민京が"), fonts
    assert "‹Tamil: 3 characters›" in read and TAMIL not in read and "\ufffd" not in read
    for shown in ("김민수", "北京大学", "がぎぐ", "Ёлка"): assert shown in read, shown
    assert read.count("3.0 points") == len(SHOWN) + 1, "the sentence around keeps its order"
    first = (tmp_path/"a.pdf").read_bytes()
    report.to_pdf(text, "Title", tmp_path/"a.pdf")
    assert first == (tmp_path/"a.pdf").read_bytes()


def cell(gain): return {"metric": "anls", "questions": 9, "images": 3, "baseline": {"value": .3, "ci95": [.2, .4]}, "ours": {"value": .4, "ci95": [.3, .5], "per_seed": {"42": .4}},
                        "delta": {"value": gain, "ci95": [gain - .01, gain + .01], "p_value": .01}}


def test_names_from_right_to_left_do_not_reorder_the_report(tmp_path):
    types = {"شكل": cell(.1), "נתונים": cell(.2), "forms": cell(.05)}
    sentence = answer_types({"by_document_type": types})
    page = report.to_html(report.render("{{ said }}\n\n{{ table }}", said=sentence, table=by_group(types, "document type", "By type")), "Title")
    body = page[page.index("<body"):]
    assert body.count('<span class="quoted" dir="auto">نص') == 0 and body.count('dir="auto">נתונים</span>') == 2 == body.count('dir="auto">شكل</span>')
    assert "\u2068" not in body and "forms" in body
    assert "<td dir='auto' style='text-align:start'>שלום</td>" in answers_html([{"system": "base", "answer": "שלום", "confidence": .5, "seconds": 1}], "12 שלום")
