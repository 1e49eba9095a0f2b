"docvlm-predict: a row a document, whatever is in the folder and whenever it is interrupted; the promise about errors holds."
import errno
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pypdfium2 as pdfium
import pytest
from conftest import refusal
from filelock import FileLock
from PIL import Image

from docvlm import cli, evaluation
from docvlm.apps import predict
from docvlm.analysis.extraction import CERTAINTY, choose_threshold
from docvlm.apps.predict import (KeptAnswers, choose_answer, explain_promise, find_pages,
                                 predict_documents, promise)
from docvlm.bench.throughput import generate_answers, load_plain
from docvlm.core import Study, open_study
from docvlm.files import StudyError
from docvlm.inputs.sources import rows_dataset
from docvlm.model import load_processor

ROOT = Path(__file__).resolve().parent.parent
PDFS = ROOT.parent/"shared"/"real"/"pdfs"
SMOKE = open_study("smoke")
FIELDS = {"total": "What is the total?", "date": "What is the date?"}


def page(number): return Image.effect_noise((60 + number, 40), 50).convert("RGB")


@pytest.fixture
def folder(tmp_path):
    "Three pages, one in a folder of its own, and a PDF of two pages."
    (tmp_path/"in"/"below").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "below/c.png")): page(number).save(tmp_path/"in"/name)
    page(3).save(tmp_path/"in"/"d.pdf", save_all=True, append_images=[page(4)])
    return tmp_path/"in"


@pytest.fixture
def model(monkeypatch):
    "In place of the model: pages are read but not encoded; the answers are numbered. Returns the keys that were asked."
    asked = []
    def answers(study, model, processor, keys, read, asks, precision, bar):
        asked.extend(keys)
        return {key: [(f"{len(asked)}-{n}", .5 + n/10) for n in range(len(asks))] for key in keys}
    monkeypatch.setattr(predict, "_answers", answers)
    monkeypatch.setattr(predict, "load_base", lambda *given: None)
    monkeypatch.setattr(predict, "hold_weights", lambda model: model)
    return asked


def test_the_answers_are_those_of_generate_and_a_page_is_encoded_once(folder, tmp_path, monkeypatch):
    encoded, encode = [], predict.encode_pages
    monkeypatch.setattr(predict, "encode_pages", lambda model, pixels, *rest: encoded.append(len(pixels)) or encode(model, pixels, *rest))
    monkeypatch.setattr(predict, "quick_precision", lambda study: "fp32")
    monkeypatch.setattr(predict, "PAGES_AT_A_TIME", 2)
    predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.parquet")
    found = pd.read_parquet(tmp_path/"answers.parquet").set_index("document")
    assert encoded == [2, 2, 1] and found.error.eq("").all() and found.review.eq("").all()
    rows = rows_dataset([{"question_id": f"{name}{field}", "doc_id": name, "images": [str(folder/name)], "question": question, "answers": [""],
                          "doc_types": [], "benchmark": "docvqa", "split": "test", "source": ""}
                         for name in ("a.png", "below/c.png") for field, question in FIELDS.items()])
    want = generate_answers(load_plain(SMOKE.preset, "fp32"), load_processor(SMOKE.preset), SMOKE.preset, rows, 1, "fp32")
    assert [found[field][name] for name in ("a.png", "below/c.png") for field in FIELDS] == want


def test_an_interrupted_run_asks_nothing_twice(folder, tmp_path, monkeypatch, model, capsys):
    monkeypatch.setattr(predict, "PAGES_AT_A_TIME", 1)
    add = KeptAnswers.add
    def stopped(self, found):
        add(self, found)
        if len(model) == 2: raise KeyboardInterrupt
    monkeypatch.setattr(KeptAnswers, "add", stopped)
    with pytest.raises(KeyboardInterrupt): predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    assert not (tmp_path/"answers.csv").exists()
    kept, = tmp_path.glob("answers.csv.*.jsonl")
    with kept.open("a") as file: file.write('\n{"cut off')  # what a kill in the middle of a line leaves
    predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    assert len(model) == len(set(model)) == 5 and "2 pages are answered already" in capsys.readouterr().err
    first = (tmp_path/"answers.csv").read_bytes()
    predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    assert len(model) == 5 and (tmp_path/"answers.csv").read_bytes() == first, "a third run asks nothing"


def test_a_killed_process_goes_on(folder, tmp_path):
    code = ("import os, sys; from pathlib import Path; from docvlm.apps import predict; from docvlm.core import open_study\n"
            "predict.PAGES_AT_A_TIME, add = 1, predict.KeptAnswers.add\n"
            "def killed(self, found):\n"
            "    add(self, found); print(*found, flush=True)\n"
            "    if sys.argv[1] == 'kill' and len(self.answers) == 2: os.kill(os.getpid(), 9)\n"
            "predict.KeptAnswers.add = killed\n"
            f"predict.predict_documents(open_study('smoke', settings={{'max_pixels': 64*28*28}}), Path({str(folder)!r}), {FIELDS!r}, Path({str(tmp_path/'answers.csv')!r}))")
    done = [subprocess.run([sys.executable, "-c", code, how], cwd=ROOT, capture_output=True, text=True) for how in ("kill", "go on")]
    assert done[0].returncode == -9 and done[1].returncode == 0, done[1].stderr
    asked = [line for run in done for line in run.stdout.split()]
    assert len(asked) == len(set(asked)) == 5 and len(pd.read_csv(tmp_path/"answers.csv")) == 4


def test_other_settings_start_anew_and_say_so(folder, tmp_path, model, capsys, monkeypatch):
    output = tmp_path/"answers.csv"
    predict_documents(SMOKE, folder, FIELDS, output)
    assert "starting anew" not in capsys.readouterr().err
    predict_documents(SMOKE, folder, FIELDS | {"name": "Who?"}, output)
    assert len(model) == 10 and "which is left as it is; starting anew" in capsys.readouterr().err
    monkeypatch.setattr(predict, "adapter_digest", lambda folder: folder.name)
    monkeypatch.setattr(predict, "load_adapter", lambda model, folder: model)
    predict_documents(SMOKE, folder, FIELDS, output, Path("tuned"))
    assert len(model) == 15 and "starting anew" in capsys.readouterr().err
    predict_documents(SMOKE, folder, FIELDS, output)
    assert len(model) == 15, "the first settings' answers are still there"
    predict_documents(SMOKE, folder, {"sum": FIELDS["total"], "day": FIELDS["date"]}, output)
    assert len(model) == 15 and "sum" in pd.read_csv(output), "a field's name changes no answer"


def test_other_code_starts_anew(folder, tmp_path, model, capsys, monkeypatch):
    predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    monkeypatch.setattr(predict, "code_digests", lambda notebook: {"library_sha256": f"changed {notebook}"})
    predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    assert len(model) == 10 and "settings or code differ" in capsys.readouterr().err


def test_only_new_documents_are_asked(folder, tmp_path, model):
    predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    (folder/"a.png").rename(folder/"z.png")
    page(9).save(folder/"new.png")
    predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    assert len(model) == 6 and "z.png" in pd.read_csv(tmp_path/"answers.csv").document.tolist()


def test_equal_files_are_asked_once(folder, tmp_path, model):
    (folder/"copy.png").write_bytes((folder/"a.png").read_bytes())
    predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    found = pd.read_csv(tmp_path/"answers.csv").set_index("document")
    assert len(model) == 5 and found.total["copy.png"] == found.total["a.png"]


@pytest.mark.parametrize("name, content", [
    ("empty.png", b""), ("empty.pdf", b""), ("text.png", b"no image"), ("cut.pdf", b"%PDF-1.7\n1 0 obj"), ("cut.png", None)])
def test_a_document_that_fails_is_a_row_with_the_reason(folder, tmp_path, model, name, content):
    (folder/name).write_bytes((folder/"a.png").read_bytes()[:90] if content is None else content)
    summary = predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    found = pd.read_csv(tmp_path/"answers.csv").set_index("document")
    assert len(found) == 5 and len(model) == 5 and found.error.notna().tolist() == [i == name for i in found.index]
    assert found.review[name] == "total; date" and pd.isna(found.total[name]) and pd.isna(found.total_confidence[name])
    assert "\n" not in found.error[name] and any("Documents with an error: 1" in line for line in summary)


def many_pages(path, count, size=(40, 30)):
    "A PDF of many empty pages."
    document = pdfium.PdfDocument.new()
    for _ in range(count): document.new_page(*size)
    document.save(path)
    return path


def test_too_many_pages_to_read_together_are_a_row_with_the_reason(folder, tmp_path, model, monkeypatch):
    drawn, read = [], predict.open_page
    monkeypatch.setattr(predict, "open_page", lambda path, number, most: drawn.append(path.name) or read(path, number, most))
    many_pages(folder/"long.pdf", predict.MOST_TOGETHER + 1)
    monkeypatch.setattr(predict, "asks_whole_documents", lambda study: True)
    summary = predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    found = pd.read_csv(tmp_path/"answers.csv").set_index("document")
    assert found.error["long.pdf"] == "long.pdf: 501 pages, over the 500 that can be read together; split it into files of at most 500 pages"
    assert found.review["long.pdf"] == "total; date" and found.error.notna().sum() == 1 and "Documents with an error: 1, see the column error" in summary
    assert sorted(set(drawn)) == ["a.png", "b.png", "c.png", "d.pdf"] and len(model) == 4, "it is not drawn"
    found, errors, _ = find_pages(many_pages(tmp_path/"fits.pdf", predict.MOST_TOGETHER), whole=True)
    assert len(found["fits.pdf"][0][2]) == 500 and not errors
    assert len(find_pages(folder/"long.pdf")[0]["long.pdf"]) == 501, "there is no such limit where each page is asked alone"


def test_of_pages_that_are_read_together_only_those_shown_are_kept_and_encoded(tmp_path, monkeypatch):
    "Sixty pages over the budget; page 47 holds the word of the questions."
    held, most, encoded, encode = [], [], [], predict.encode_pages
    def opened(path, number, budget):
        image = Image.new("RGB", (200 + number, 300), (4*number, 0, 0))
        image.number = number
        held.append(weakref.ref(image))
        most.append(sum(ref() is not None for ref in held))
        return image, ""
    monkeypatch.setattr(predict, "open_page", opened)
    monkeypatch.setattr(predict, "page_text", lambda image: "the total" if image.number == 47 else "something else")
    monkeypatch.setattr(predict, "encode_pages", lambda model, pixels, *rest: encoded.append(len(pixels)) or encode(model, pixels, *rest))
    study, processor = replace(SMOKE, preset=replace(SMOKE.preset, tokens_per_document=200)), load_processor(SMOKE.preset)
    questions, numbers = ["What is the total?", "Which total?"], tuple(range(1, 61))
    pixels, grids, sets = predict._read(study, processor, questions, tmp_path/"long.pdf", numbers)
    assert max(most) <= 2, "two pages at most are held as images"
    assert sets == {tuple(range(len(pixels))): [0, 1]} and 0 < sum(map(np.prod, grids)) <= 200*processor.image_processor.merge_size**2
    wanted, = predict.prepare_images(processor, [opened("", 47, 0)[0]])[0]
    assert sum(page.shape == wanted.shape and bool((page == wanted).all()) for page in pixels) == 1
    document = "long", tmp_path/"long.pdf", numbers
    found, = predict.answer_pages_of(study, predict.load_base(study.preset, "fp32"), processor, [document], questions, "fp32")
    assert encoded == [len(pixels)] and len(found["long"]) == 2


def test_a_page_that_fails_leaves_the_other_pages_values_for_a_person(folder, tmp_path, model, monkeypatch):
    read = predict.open_page
    def gone(path, number, most):
        if path.suffix == ".pdf" and number == 1: raise OSError(errno.EIO, "Input/output error")
        return read(path, number, most)
    monkeypatch.setattr(predict, "open_page", gone)
    predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    row = pd.read_csv(tmp_path/"answers.csv").set_index("document").loc["d.pdf"]
    assert row.error == "page 1: Input/output error" and row.review == "total; date" and row.total_page == 2
    monkeypatch.setattr(predict, "open_page", read)
    predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    row = pd.read_csv(tmp_path/"answers.csv").set_index("document").loc["d.pdf"]
    assert pd.isna(row.error) and len(model) == 5, "what failed is tried again, and nothing else"


def test_nan_is_no_answer(folder, tmp_path, monkeypatch):
    encode = predict.encode_pages
    def one_bad(*given): return [encoded*(float("nan") if i == 1 else 1) for i, encoded in enumerate(encode(*given))]
    monkeypatch.setattr(predict, "encode_pages", one_bad)
    predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.jsonl")
    found = pd.read_json(tmp_path/"answers.jsonl", lines=True).set_index("document")
    assert "NaN" in found.error["b.png"] and pd.isna(found.total["b.png"]) and found.error[["a.png", "below/c.png"]].eq("").all()


def test_the_most_confident_answer_with_text_is_taken(folder, tmp_path, monkeypatch, model):
    told = {1: [("", .99), ("", .9)], 2: [("7.00", .4), ("", .6)]}
    monkeypatch.setattr(predict, "_answers", lambda *given: {key: told[int(key.rpartition("-")[2])] for key in given[3]})
    predict_documents(SMOKE, folder/"d.pdf", FIELDS, tmp_path/"answers.parquet")
    row = pd.read_parquet(tmp_path/"answers.parquet").iloc[0]
    assert (row.document, row.total, row.total_confidence, row.total_page) == ("d.pdf", "7.00", .4, 2)
    assert row.date == "" and row.date_confidence == .6 and pd.isna(row.date_page), "absent on every page"
    assert choose_answer([(1, "x", .5), (2, "y", .5)])[0] == "x"


@pytest.mark.parametrize("text", ["a,b;\"c\"", "two\nlines", "=1+1", "€ 1.234,50 ½ 日本", " '", "null", "007"])
def test_any_answer_is_written_as_it_is(folder, tmp_path, monkeypatch, model, text):
    monkeypatch.setattr(predict, "_answers", lambda *given: {key: [(text, .5), ("", .5)] for key in given[3]})
    for name, read in {"a.csv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False), "a.parquet": pd.read_parquet,
                       "a.JSONL": lambda path: pd.read_json(path, lines=True, dtype=False)}.items():
        predict_documents(SMOKE, folder, FIELDS, tmp_path/name)
        found = read(tmp_path/name)
        assert found.total.tolist() == [text]*4 and found.document.tolist() == ["a.png", "b.png", "below/c.png", "d.pdf"]
        assert found.columns.tolist() == ["document", "total", "total_confidence", "total_page", "date", "date_confidence", "date_page",
                                          "review", "error"]


def test_names_that_are_no_utf_8_are_written(folder, tmp_path, model):
    try: (folder/os.fsdecode(b"caf\xe9.png")).write_bytes((folder/"a.png").read_bytes())
    except OSError: pytest.skip("this file system takes only UTF-8 names")
    for name in ("a.csv", "a.parquet", "a.jsonl"): predict_documents(SMOKE, folder, FIELDS, tmp_path/name)
    assert "caf\\xe9.png" in pd.read_csv(tmp_path/"a.csv").document.tolist()


def test_two_predictions_into_one_file_exclude_each_other(folder, tmp_path, model):
    with FileLock(tmp_path/".answers.csv.lock"):
        with pytest.raises(StudyError, match="Another docvlm-predict works on answers.csv"):
            predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
        predict_documents(SMOKE, folder, FIELDS, tmp_path/"other.csv")
    predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    assert len(model) == 10


def full(*given, **options): raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_loses_no_answer(folder, tmp_path, monkeypatch, model):
    output = tmp_path/"answers.csv"
    monkeypatch.setattr(predict, "PAGES_AT_A_TIME", 1)
    with monkeypatch.context() as short:
        short.setattr(predict.os, "fsync", lambda file: full() if len(model) == 3 else None)
        with pytest.raises(StudyError, match="No space left on device; free some space and run the same command again"):
            predict_documents(SMOKE, folder, FIELDS, output)
    with monkeypatch.context() as short:
        short.setattr(pd.DataFrame, "to_csv", full)
        with pytest.raises(StudyError, match="Cannot write answers.csv: No space left on device.*only writes the table"):
            predict_documents(SMOKE, folder, FIELDS, output)
    assert not output.exists() and len(model) == 5
    predict_documents(SMOKE, folder, FIELDS, output)
    assert len(model) == 5 and len(pd.read_csv(output)) == 4


def test_a_table_that_is_open_elsewhere_stays_whole(folder, tmp_path, monkeypatch, model):
    (tmp_path/"answers.csv").write_text("earlier")
    def in_use(self, target): raise PermissionError(errno.EACCES, "Permission denied")
    with monkeypatch.context() as windows:
        windows.setattr(Path, "replace", in_use)
        with pytest.raises(StudyError, match="Permission denied.*close the file where it is open"):
            predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv")
    assert (tmp_path/"answers.csv").read_text() == "earlier"


@pytest.mark.parametrize("options, message", [
    ({"output": "a.txt", "question": ["Why?"]}, "--output must be a file ending in .csv, .parquet or .jsonl, not 'a.txt'"),
    ({"output": "", "question": ["Why?"]}, "--output must be a file"),
    ({"output": "a.csv"}, "Give either --fields or --question"),
    ({"output": "a.csv", "fields": "f.csv", "question": ["Why?"]}, "Give either --fields or --question"),
    ({"output": "f.csv", "fields": "f.csv"}, "--output would replace the --fields file"),
    ({"output": "a.csv", "question": [" "]}, "no question; ask in 1 to"),
    ({"output": "a.csv", "question": ["Why?", "Why? "]}, "--question is given twice: 'Why?'"),
    ({"output": "a.csv", "question": ["Why?", "Why?_page"]}, "Two columns would be named 'Why?_page'; rename a field"),
    *[({"output": "a.csv", "question": ["Why?"], "accept_error": error}, "--accept-error must be a number")
      for error in (0., -.1, .51, 2., float("nan"))],
    ({"output": "a.csv", "question": ["Why?"], "accept_error": .02}, "The system base of the study smoke has no test answers yet"),
    ({"output": "a.csv", "question": ["Why?"], "adapter": "no/such"}, "No adapter in no/such"),
    ({"output": "a.csv", "question": ["Why?"], "place": "no/such"}, "no/such is neither a file nor a folder"),
    ({"output": "a.csv", "question": ["Why?"], "place": "empty"}, "No document in empty")])
def test_a_wrong_option_is_one_clear_line(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Study, "run_dir", tmp_path/"run")
    (tmp_path/"empty").mkdir()
    assert message in refusal(capsys, cli.predict_table, **{"place": ".", "preset": "smoke", "adapter": "base"} | options)


def test_the_command_takes_hyphens_and_several_questions(folder, tmp_path, monkeypatch, capsys):
    given = {}
    monkeypatch.setattr(predict, "predict_documents", lambda *rest: given.update(rest=rest) or ["done"])
    for option in ("--accept-error", "--accept_error"):
        monkeypatch.setattr(sys, "argv", ["docvlm-predict", str(folder), "--question", "Total?", "--question=Date?", "--output", "a.csv",
                                          option, "0.02", "--preset", "smoke", "--adapter", "base"])
        cli.predict_table()
        assert given["rest"][1:] == (folder, {"Total?": "Total?", "Date?": "Date?"}, Path("a.csv"), None, "base", .02)
    assert capsys.readouterr().out == "done\ndone\n"


def simulated(draw, documents, answers, risk, correlation):
    "Confidences, errors and documents; errors of a document share their luck with probability `correlation`, confidences too."
    shared = draw.random((documents, answers)) < correlation**.5
    def values(): return np.where(shared, draw.random((documents, 1)), draw.random((documents, answers)))
    confidence = values()
    return confidence.ravel(), (values() < risk(1 - confidence)).ravel(), np.repeat(np.arange(documents), answers)


@pytest.mark.parametrize("risk", [lambda u: .5*u, lambda u: .101 + 0*u, lambda u: .3*(1 - u), lambda u: np.where(u < .5, .02, .5),
                                  lambda u: np.where(u < .2, .3, np.where(u < .5, .02, .3))], ids=["line", "flat", "falling", "step", "valley"])
@pytest.mark.parametrize("documents, answers, correlation", [(300, 1, 0), (100, 5, .3), (100, 5, 1)])
def test_the_promise_holds(risk, documents, answers, correlation):
    draw, broken, draws = np.random.default_rng(0), 0, 200
    for _ in range(draws):
        threshold = choose_threshold(*simulated(draw, documents, answers, risk, correlation), .1)["threshold"]
        if threshold is not None: broken += risk(np.linspace(0, 1 - threshold, 1001)).mean() > .1
    assert broken/draws <= 1 - CERTAINTY + 2*(.05*.95/draws)**.5


def test_the_threshold_is_useful():
    draw = np.random.default_rng(1)
    found = [choose_threshold(*simulated(draw, 500, 2, lambda u: np.where(u < .5, .01, .5), 0), .05) for _ in range(20)]
    assert np.median([answer["threshold"] or 1 for answer in found]) < .6, "about half of the answers can be accepted"
    assert all(answer["wrong"] <= .05*answer["accepted"] for answer in found)


def test_the_threshold_does_not_depend_on_the_order_and_keeps_ties_together():
    confidence, wrong, documents = np.repeat([.9, .8, .7], 200), np.repeat([False, False, True], 200), np.arange(600)
    order = np.random.default_rng(0).permutation(600)
    found = choose_threshold(confidence, wrong, documents, .05)
    assert found == choose_threshold(confidence[order], wrong[order], documents[order], .05)
    assert (found["threshold"], found["accepted"], found["wrong"]) == (.8, 400, 0)
    assert choose_threshold(np.full(300, .9), np.arange(300) < 100, np.arange(300), .05)["threshold"] is None


def test_answers_about_few_documents_count_as_few():
    sure, right = np.linspace(1, .9, 400), np.zeros(400, bool)
    assert choose_threshold(sure, right, np.arange(400), .02)["threshold"] == .9
    assert choose_threshold(sure, right, np.arange(400) % 20, .02)["threshold"] is None, "20 documents, none of which fails"


def answers(questions, confidence=1., prediction="12.00", documents=None, benchmark="docvqa"):
    return pd.DataFrame({"benchmark": benchmark, "question": questions, "confidence": confidence, "prediction": prediction,
                         "answers": [["12.00"]]*len(questions), "doc_id": documents or [f"d{n}" for n in range(len(questions))]})


def test_the_promise_rests_on_the_same_questions_if_they_are_asked():
    test = pd.concat([answers(["Total?"]*300), answers(["Date?"]*300, prediction="no")])
    assert promise(test, ["Total?"], .05)["threshold"] == 1 and promise(test, ["Total?"], .05)["answers"] == 300
    assert promise(test, ["Total?", "Date?"], .05)["threshold"] is None
    other = promise(test, ["Total?", "Name?"], .05)
    assert (other["unasked"], other["answers"], other["threshold"]) == (["Name?"], 300, 1), "answers to other questions do not count"
    assert (promise(test, ["Name?"], .05)["answers"], promise(test, ["Name?"], .05)["threshold"]) == (0, None)
    assert promise(answers(["Total?"]*300, benchmark="chartqa"), ["Total?"], .05)["answers"] == 0


def test_what_is_wrong_is_what_is_no_exact_match():
    test = answers(["Total?"]*300, prediction=["12.00 "]*200 + ["12.0"]*100)
    assert promise(test, ["Total?"], .05)["threshold"] is None, "one missing digit is an error, though ANLS forgives it"
    test["answers"] = [["12.00"]]*200 + [["12.0", ""]]*100
    assert promise(test, ["Total?"], .05)["wrong"] == 0


def test_what_is_not_promised_is_for_a_person(folder, tmp_path, monkeypatch, model):
    test = pd.concat([answers([*FIELDS.values()]*300, [.55, .45]*300)])
    monkeypatch.setattr(predict, "stored_predictions", lambda *given: test)
    summary = predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv", accept_error=.05)
    found = pd.read_csv(tmp_path/"answers.csv", keep_default_na=False)
    assert found.review.tolist() == ["", "", "", "total; date"] and "for a person: 2 of 8 values (25 %)" in summary[0]
    assert "Clopper–Pearson" in summary[1] and "does not cover the best of many answers, so all their values are for review" in summary[-1]
    test["prediction"] = ["12.00", "no"]*300
    summary = predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv", accept_error=.05)
    found = pd.read_csv(tmp_path/"answers.csv", keep_default_na=False)
    assert found.review.tolist() == ["total"]*3 + ["total; date"], "the date's answers are of .6, the total's of .5"
    summary = predict_documents(SMOKE, folder, FIELDS | {"name": "Who?"}, tmp_path/"more.csv", accept_error=.05)
    found = pd.read_csv(tmp_path/"more.csv", keep_default_na=False)
    assert found.review.tolist() == ["total; name"]*3 + ["total; date; name"] and any("does not ask: 1; nothing is promised" in line for line in summary)
    monkeypatch.setattr(predict, "stored_predictions", lambda *given: test[:20])
    summary = predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv", accept_error=.02)
    found = pd.read_csv(tmp_path/"answers.csv", keep_default_na=False)
    assert found.review.eq("total; date").all() and "cannot be promised" in summary[1] and len(model) == 10


def test_the_promise_covers_pages_that_are_read_together_as_in_the_test(folder, tmp_path, monkeypatch, model):
    monkeypatch.setattr(predict, "stored_predictions", lambda *given: answers([*FIELDS.values()]*300, [.55, .45]*300))
    monkeypatch.setattr(predict, "asks_whole_documents", lambda study: True)
    summary = predict_documents(SMOKE, folder, FIELDS, tmp_path/"answers.csv", accept_error=.05)
    row = pd.read_csv(tmp_path/"answers.csv", keep_default_na=False).set_index("document").loc["d.pdf"]
    assert len(model) == 4 and row.review == "" and row.total_page == "" and "best of many" not in "".join(summary)


def test_the_method_says_that_the_bound_is_approximate():
    for wrong in ("12.00", "no"):
        line, = explain_promise(promise(answers(["Total?"]*300, prediction=wrong), ["Total?"], .05), 0)
        assert "not independent" in line and "design effect" in line and "approximate" in line


def test_too_few_answers_are_told_by_number():
    line, = explain_promise(promise(answers(["Total?"]*100), ["Total?"], .02), 0)
    assert "cannot be promised from 100 test answers" in line and "worth 100 independent answers and 203 are needed" in line


def test_test_answers_of_another_model_are_refused(tmp_path, monkeypatch):
    class Scratch(Study): run_dir = tmp_path
    study = Scratch(SMOKE.preset)
    monkeypatch.setattr(evaluation, "_decided", lambda study, precision="": ("a",))
    with pytest.raises(StudyError, match="has no test answers yet; run docvlm-study"): evaluation.stored_predictions(study, "base", None)
    table = answers(["Total?"])
    evaluation._write_table(tmp_path/"predictions"/"base.parquet", table, {"key": evaluation.digest_of("a", None)})
    assert len(evaluation.stored_predictions(study, "base", None)) == 1
    monkeypatch.setattr(evaluation, "_decided", lambda study, precision="": ("b",))
    with pytest.raises(StudyError, match="has changed since its test answers were stored"): evaluation.stored_predictions(study, "base", None)


def test_only_the_files_of_this_output_are_not_told_as_left_out(folder, model):
    for name in ("data.csv", "a.csv.txt", "notes.txt"): (folder/name).touch()
    (folder/"a").mkdir()
    (folder/"a"/"a.csv").touch()
    for fields in (FIELDS, FIELDS | {"name": "Who?"}, FIELDS): summary = predict_documents(SMOKE, folder, fields, folder/"a.csv")
    assert summary[1] == "Left out: a.csv.txt, a/a.csv, data.csv, notes.txt"


def test_files_left_out_may_have_any_name(folder, model):
    (folder/"caf\udce9.txt").touch()
    for _ in range(2): summary = predict_documents(SMOKE, folder, FIELDS, folder/"caf\udce9.csv")
    assert summary[1] == "Left out: caf\\xe9.txt" and "\n".join(summary).encode()


def test_the_documents_are_those_of_subfolders_too(folder):
    found, errors, left_out = find_pages(folder)
    assert {name: len(pages) for name, pages in found.items()} == {"a.png": 1, "b.png": 1, "below/c.png": 1, "d.pdf": 2} and not errors
    (folder/"notes.txt").touch()
    assert find_pages(folder)[2] == ["notes.txt"] and list(find_pages(folder/"d.pdf")[0]) == ["d.pdf"]


def test_real_invoices(tmp_path):
    if not PDFS.is_dir(): pytest.skip(f"no real documents in {PDFS}")
    (tmp_path/"in").mkdir()
    for name in ("coolblue1.pdf", "free_fiber.pdf"): (tmp_path/"in"/name).symlink_to(PDFS/name)
    predict_documents(SMOKE, tmp_path/"in", FIELDS, tmp_path/"answers.parquet")
    found = pd.read_parquet(tmp_path/"answers.parquet")
    assert found.error.eq("").all() and found.total.str.len().gt(0).all() and found.total_confidence.between(0, 1).all()
