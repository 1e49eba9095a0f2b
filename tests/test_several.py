"Documents of several pages: one prefix, the library's positions, loss and answers; bad documents; long ones; their scores."
import json
import unicodedata
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as PILImage, ImageDraw

from docvlm.bench.throughput import exact_features, full_logits, generate_answers, load_plain, question_batch
from docvlm.core import open_study
from docvlm.data import load_splits, summarize_split
from docvlm.inputs.leakage import find_leaks, fingerprints
from docvlm.engine.answering import answer_rows
from docvlm.engine.packing import collate_pages
from docvlm.evaluation import compare
from docvlm.files import StudyError
from docvlm.inputs import retrieval
from docvlm.inputs.folder import MOST_TOGETHER, load_folder
from docvlm.inputs.images import distinct_pages, pages_of, undecoded
from docvlm.inputs.sources import rows_dataset
from docvlm.model import load_base, load_processor
from docvlm.training import answer_loss, pack_rows


@pytest.fixture(scope="module")
def study():
    "The smoke study on small pages of mixed sizes."
    smoke = open_study("smoke")
    return replace(smoke, preset=replace(smoke.preset, max_pixels=36*28*28, tokens_per_document=4096))


@pytest.fixture(scope="module")
def processor(study): return load_processor(study.preset)


def documents_of(groups):
    "The smoke study's test questions, about documents of its pages, each from `start` on and of `count` pages."
    single = undecoded(load_splits(open_study("smoke"))["test"])
    every, found = list(pages_of(single).values()), []
    for start, count in groups:
        pages = every[start:start + count]
        images = [single[page["rows"][0]]["images"][0] for page in pages]
        for page in pages:
            for row in page["rows"]:
                found.append(single[row] | {"question_id": f"{start}-{count}-{row}", "doc_id": f"document {start}-{count}", "images": images,
                                            "pages": list(range(1, count + 1)), "page_count": count, "evidence_pages": []})
    return rows_dataset(found)


@pytest.fixture(scope="module")
def rows(study):
    "Documents of one to four pages that share pages."
    return documents_of(((0, 2), (1, 3), (4, 4), (8, 1), (9, 2), (12, 4)))


def test_packed_documents_give_the_librarys_loss(study, processor, rows):
    some = rows.select([i for pages in list(pages_of(rows).values())[:4] for i in pages["rows"][:4]])
    base, plain = load_base(study.preset, "fp32"), load_plain(study.preset, "fp32")
    features = exact_features(base, processor, some)
    packed = pack_rows(study, processor, some, features)
    assert {len(each.grids) for each in packed} == {1, 2, 3, 4} and len({grid for each in packed for grid in each.grids}) > 2
    batch = collate_pages(packed, features)
    with torch.no_grad():
        found, whole = answer_loss(base, batch).item(), answer_loss(base, batch, logits=full_logits).item()
        batches = [question_batch(processor, study.preset, [some[i]]) for i in range(len(some))]
        count = sum(int((b["labels"] != -100).sum()) for b in batches)
        want = sum(plain(**b, num_items_in_batch=count).loss.item() for b in batches)
    assert abs(whole/found - 1) < 1e-6 and abs(found/want - 1) < 1e-5


@pytest.mark.parametrize("tokens_in_flight", [32768, 300])
def test_shared_documents_give_the_answers_of_generate(study, processor, rows, tokens_in_flight):
    asked = rows if tokens_in_flight > 300 else rows.select(range(0, len(rows), 4))
    base = load_base(study.preset, "fp32")
    want = generate_answers(load_plain(study.preset, "fp32"), processor, study.preset, asked, 1, "fp32")
    changed = replace(study, preset=replace(study.preset, tokens_in_flight=tokens_in_flight))
    found = answer_rows(changed, base, processor, asked, exact_features(base, processor, asked), "fp32")
    assert found.prediction.tolist() == want and len(set(want)) > 10, "answers that are all alike prove little"
    assert tokens_in_flight == 300 or len(asked) > 60


@pytest.mark.slow
def test_three_hundred_questions_are_answered_as_generate_does(study, processor):
    many = documents_of([(start, count) for count in (2, 3, 4, 6, 8) for start in range(0, 17 - count, count)])
    base = load_base(study.preset, "fp32")
    want = generate_answers(load_plain(study.preset, "fp32"), processor, study.preset, many, 1, "fp32")
    found = answer_rows(study, base, processor, many, exact_features(base, processor, many), "fp32")
    assert len(many) >= 300 and found.prediction.tolist() == want and len(set(want)) > 50


def test_a_page_has_one_entry_however_many_documents_show_it(rows):
    places, pages = distinct_pages(rows), pages_of(rows)
    keys = [key for each in pages.values() for key in each["keys"]]
    assert len(keys) > len(set(keys)) and len(places) == sum(len(each["keys"]) for each in pages.values())


def page(path, text):
    drawn = PILImage.new("RGB", (420, 140), "white")
    ImageDraw.Draw(drawn).text((20, 40), text, "black", font_size=26)
    drawn.save(path)


def folder_of(tmp_path, *lines, pages=4):
    "A documents folder with these lines in both splits, each beside a good one."
    for split in ("train", "test"):
        (tmp_path/split).mkdir(exist_ok=True)
        for n in range(1, pages + 1): page(tmp_path/split/f"{n}.png", f"Page {n} of {split}")
        (tmp_path/split/"tall.png").write_bytes(b"")
        PILImage.effect_noise((30, 60), 60).save(tmp_path/split/"tall.png")
        first = PILImage.open(tmp_path/split/"1.png")
        first.save(tmp_path/split/"two.pdf", save_all=True, append_images=[PILImage.open(tmp_path/split/"2.png")])
        good = {"file_names": ["1.png", "2.png"], "question": "Total?", "answers": ["9"], "document": "good"}
        (tmp_path/split/"metadata.jsonl").write_text("\n".join(json.dumps(line) for line in (good, *(
            {"question": f"Which {n}?", "answers": ["9"]} | line for n, line in enumerate(lines)))))
    return tmp_path


@pytest.mark.parametrize("line, said", [
    ({"file_names": []}, "file_names lists no page"), ({"file_names": "1.png"}, "file_names lists no page"),
    ({"file_names": ["1.png"]*2000}, "2,000 pages, over 500 at once; list fewer"),
    ({"file_name": "two.pdf", "page": "1-2000"}, "over 500 pages at once"),
    ({"file_names": ["1.png", "none.png", "3.png"]}, "file 'none.png' not found"),
    ({"file_names": ["1.png", "", "3.png"]}, "no file_name"), ({"file_names": ["1.png", None]}, "no file_name"),
    ({"file_names": ["1.png", "two.pdf"]}, "two.pdf: holds 2 pages; file_names lists a file for each page"),
    ({"file_names": ["1.png", "2.png"], "evidence_pages": [3]}, "evidence on page 3"),
    ({"file_names": ["1.png", "2.png"], "evidence_pages": [0]}, "pages are numbered from 1"),
    ({"file_name": "1.png", "evidence_pages": [2]}, "evidence on page 2"),
    ({"file_name": "two.pdf", "page": 2, "evidence_pages": [1]}, "evidence on page 1"),
    ({"file_name": "two.pdf", "page": [1, 3]}, "has no page 3"), ({"file_name": "two.pdf", "page": "2-1"}, "is not a page number"),
    ({"file_names": ["1.png", "../../2.png"]}, "leaves the folder"), ({"file_names": ["1.png"], "page": 1}, "file_names and page"),
    ({"file_names": ["2.png", "1.png"], "document": "good"}, "has other pages in a line before"),
    ({"file_names": [["1.png"]]}, "file_name is not a text"), ({"file_names": {"1": "1.png"}}, "file_names lists no page")])
def test_a_bad_document_is_skipped_with_one_clear_reason(tmp_path, line, said):
    rows, skipped = load_folder(folder_of(tmp_path, line), tmp_path/"pages")
    assert len(rows["train"]) == 1 and len(skipped) == 2 and said in skipped[0]["reason"], skipped


@pytest.mark.parametrize("line, pages", [
    ({"file_name": "two.pdf"}, [1, 2]), ({"file_name": "two.pdf", "page": "1-2"}, [1, 2]), ({"file_name": "two.pdf", "page": 2}, [2]),
    ({"file_name": "two.pdf", "page": [2, 1], "evidence_pages": [2]}, [1, 2]), ({"file_names": ["1.png"]}, [1]),
    ({"file_names": ["1.png", "tall.png", "3.png"], "evidence_pages": [3, 2]}, [1, 2, 3]),
    ({"file_name": "3.png", "file_names": ["1.png", "2.png", "3.png", "4.png"], "document": "x"}, [1, 2, 3, 4])])
def test_a_good_document_is_a_list_of_pages(tmp_path, line, pages):
    rows, skipped = load_folder(folder_of(tmp_path, line), tmp_path/"pages")
    row = rows_dataset(rows["train"])[1]
    assert not skipped and row["pages"] == pages and len(row["images"]) == row["page_count"] == len(pages)
    assert row["evidence_pages"] == sorted(line.get("evidence_pages", []))


def test_a_pdf_of_two_thousand_pages_is_one_clear_error(tmp_path, monkeypatch):
    documents = folder_of(tmp_path, {"file_name": "two.pdf"})
    monkeypatch.setattr("docvlm.inputs.folder.page_count", lambda path: 2000 if path.name == "two.pdf" else 1)
    skipped = load_folder(documents, tmp_path/"pages")[1]
    assert f"two.pdf: holds 2,000 pages, over {MOST_TOGETHER} at once; name some by `page`, as 1-500" in skipped[0]["reason"]


def record(tmp_path, name, pages, **changed):
    return {"question_id": name, "doc_id": name, "images": [str(tmp_path/f"{n}.png") for n in pages], "question": "Revenue of Asia?",
            "answers": ["1"], "doc_types": [], "benchmark": "mpdocvqa", "split": "test", "source": "folder"} | changed


def test_leaks_and_counts_are_by_page(tmp_path):
    for n in range(1, 6): page(tmp_path/f"{n}.png", f"{n*7919} words {n*104729}")
    train = rows_dataset([record(tmp_path, "a", [1, 2]), record(tmp_path, "b", [3])])
    test = rows_dataset([record(tmp_path, "c", [4, 2]), record(tmp_path, "d", [5], question="Who?")])
    leaks = find_leaks(train, test, near_bits=0)
    assert (leaks["exact"], leaks["question"], leaks["test_pages"], leaks["test_questions"]) == (1, 1, 3, 2)
    assert len(fingerprints(test)) == 3 and summarize_split(test)["by_benchmark"] == {"mpdocvqa": {"pages": 3, "questions": 2}}
    frame = test.remove_columns("images").to_pandas().assign(score=[0., 1.], prediction="1")
    assert compare(frame, [frame], [1], 100)["images"] == 3 and compare(frame, [frame], [1], 100)["metric"] == "anls"


@pytest.fixture
def long(tmp_path, monkeypatch):
    "A study with a small budget, a document over it, and the texts that its pages are said to have."
    texts = ["Contents", "Revenue by region: Asia 7.1", "Photograph", "Staff in Asia"]
    for n, text in enumerate(texts): page(tmp_path/f"{n}.png", text)
    read = []
    def lines(image):
        read.append(image)
        place = next(n for n in range(4) if np.array_equal(image, PILImage.open(tmp_path/f"{n}.png")))
        return [retrieval.Line(texts[place], 0, 0, 1, 1, 1.)]
    monkeypatch.setattr(retrieval, "read_lines", lines)
    preset = replace(open_study("nano").preset, tokens_per_document=150)  # a page takes 75
    rows = rows_dataset([record(tmp_path, "q", range(4), evidence_pages=[2]), record(tmp_path, "r", [0, 1]),
                         record(tmp_path, "s", range(4), question="How many staff?", evidence_pages=[1], doc_id="q")])
    return SimpleNamespace(cache_dir=tmp_path/"cache", preset=preset), rows, read


def test_the_pages_of_a_long_document_are_chosen_and_the_choice_is_measured(long):
    pytest.importorskip("bm25s")
    study, rows, read = long
    found, told = retrieval.fit_documents(study, rows)
    assert found["pages"][:] == [[2, 4], [1, 2], [1, 4]] and found["page_count"][:] == [4, 2, 4] and len(read) == 4
    assert found.features == rows.features and np.array_equal(found[0]["images"][0], rows[0]["images"][1])
    assert told["questions"] == 2 and told["documents"] == 1 and told["pages_shown"] == 2
    assert told["evidence_recall"] == told["all_evidence_shown"] == 1 and "bm25s" in told["versions"]
    assert told["questions_without_match"] == 0
    assert retrieval.fit_documents(study, rows)[0]["pages"][:] == found["pages"][:] and len(read) == 4, "the texts are kept"


def test_a_question_that_matches_no_page_gets_the_first_ones_and_is_counted(long):
    pytest.importorskip("bm25s")
    study, rows, _ = long
    foreign = rows.select([0]).map(lambda row: {"question_id": "z", "question": "매출은 얼마입니까?"}, features=rows.features)
    found, told = retrieval.fit_documents(study, datasets.concatenate_datasets([rows, foreign]))
    assert found["pages"][3] == [1, 2] and (told["questions"], told["questions_without_match"]) == (3, 1)


@pytest.mark.parametrize("text, term, lost", [("합계 금액", "금액", unicodedata.normalize("NFD", "합계")[:4]), ("Café", "café", "cafe"), ("कुल राशि", "राशि", "कलरश")])
def test_terms_do_not_depend_on_the_form_of_a_text_and_keep_its_vowel_signs(text, term, lost):
    pytest.importorskip("bm25s")
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    found, again = map(retrieval.terms, forms)
    assert found == again and term in found and lost not in found
    pages = [unicodedata.normalize("NFD", page) for page in ("1", f"{term} 9", "2")]
    scores = retrieval.page_scores(pages, unicodedata.normalize("NFC", text))
    assert scores.argmax() == 1 and scores[1] > 0 == scores[0]


def test_without_the_retriever_a_long_document_is_an_error_and_a_short_one_is_not(long, monkeypatch):
    study, rows, _ = long
    monkeypatch.setattr(retrieval, "version", lambda name: (_ for _ in ()).throw(retrieval.PackageNotFoundError(name)) if name == "bm25s" else "1")
    with pytest.raises(StudyError, match="bm25s is not installed, and a document is longer than tokens_per_document"): retrieval.fit_documents(study, rows)
    assert retrieval.fit_documents(study, rows.select([1]))[1] is None


def test_scores_are_grouped_by_number_of_pages_and_by_page_of_the_answer():
    rows = pd.DataFrame({"page_count": [1, 3, 17], "pages": [[1], [1, 2, 3], [2, 9]], "evidence_pages": [[], [2], [9, 12]]}).to_dict("records")
    assert [retrieval.page_count_group(row) for row in rows] == ["1 page", "2–4 pages", "10–20 pages"]
    assert [retrieval.evidence_groups(row) for row in rows] == [[], ["page 2–4"], ["several pages", "some not shown"]]
