"Error types hold for whatever a model, a target or a page says."
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from docvlm import failures
from docvlm.core import open_study
from docvlm.failures import Knowledge, add_types, failure_report, read_knowledge
from docvlm.analysis.errors import caption_lines, choose_failures, draw_gallery, gallery_html, printable_line, save_page
from docvlm.analysis.metrics import BENCHMARK_METRICS, score
from docvlm.failures import (COVERAGES, PLANTINGS, SUSPECTS_SHOWN, find_suspects, measure_detection, plant_wrong_labels, risk_coverage,
                             suspect_entries, vote)
from docvlm.analysis.errors import COMPUTED, TYPES, Case, PageFacts, classify, days, numbers, normalized_text

TRAPS = ["", " ", "\x00", "-", "%", "1.2.3", "1e999", "٣", "½", "9" * 400, "31/31/31", "10 10 10 utc+99", "Yes", "$1,234.50",
         "12 Mar 2020", "NaN", "inf", "İ", "ﬁ", "<b>&amp;</b>", "$\\frac{1}$", "a" * 2000, "2020-13-45", "0000-00-00", "99999999999 jan 1"]
texts = st.text(max_size=40) | st.sampled_from(TRAPS) | st.from_regex(r"[0-9a-zA-Z ,./-]{4,24}", fullmatch=True)
pages = st.builds(PageFacts, words=st.lists(texts, max_size=12), fields=st.dictionaries(texts, texts, max_size=4),
                  tables=st.lists(st.lists(st.lists(texts, max_size=3), max_size=3), max_size=2))
kinds = st.sampled_from([*COMPUTED, "", "lookup", "cell"])


@settings(max_examples=400, deadline=None)
@given(texts, st.lists(texts, min_size=1, max_size=4), st.floats(0, 1), pages, kinds,
       st.booleans())
def test_every_answer_has_one_known_type(prediction, answers, value, page, kind, cut):
    found = classify(Case(prediction, answers, value, page, kind, cut))
    assert found in TYPES
    assert (found == "correct") == (value >= 1)
    if page.phrases: assert found != "other"


@settings(max_examples=200, deadline=None)
@given(texts, st.lists(texts, min_size=1, max_size=3), st.sampled_from(sorted(BENCHMARK_METRICS)))
def test_full_marks_are_correct(prediction, answers, benchmark):
    value = score(benchmark, prediction, answers)
    assert (classify(Case(prediction, answers, value)) == "correct") == (value == 1)


@settings(max_examples=300, deadline=None)
@given(texts)
def test_readings_never_raise(text):
    assert all(np.isfinite(number) for number in numbers(normalized_text(text)))
    days(normalized_text(text))


@pytest.mark.parametrize("printed, answered", [("$1,234.50", "1.234,50 €"), ("29/12/2022", "December 29, 2022"), ("17-Dec-14", "2014-12-17"),
                                               ("12%", "0.12"), ("[X] Yes", "x yes"), ("1,234", "1234"), ("£453.38", "453,38 GBP")])
def test_the_same_value_in_another_format(printed, answered):
    assert classify(Case(answered, [printed], 0)) == classify(Case(printed, [answered], 0)) == "format"


@pytest.mark.parametrize("head, answer, kind", [
    (["Month", "Hours", "Rate"], "21.30", "wrong field"),  # another table, same column
    (["Month", "Hours", "Rate"], "160", "wrong field"),
    (["Item", "Quantity", "Price"], "21.30", "wrong row"),  # the first table goes on
    (["Month", "Hours", "Rate"], "31", "wrong row and column"),  # of the first page
    (["Month", "Hours", "Rate"], "19.99", "wrong row")])
def test_rows_and_columns_are_compared_within_one_table(monkeypatch, head, answer, kind):
    tables = [["Item", "Quantity", "Price"], ["Shelf", "12", "48.50"], ["Clock", "31", "19.99"]], [head, ["May", "160", "21.30"]]
    pages = pd.DataFrame({"doc_id": "d", "split": "test", "words_json": [json.dumps([[cell, 0, 0, 1, 1] for row in table for cell in row]) for table in tables],
                          "fields_json": "{}", "table_json": list(map(json.dumps, tables))})
    questions = pd.DataFrame({"question_id": ["q"], "doc_id": "d", "kind": "cell", "evidence_json": "null"})
    monkeypatch.setattr(failures, "page_table", lambda study: pages)
    monkeypatch.setattr(failures, "question_table", lambda study: questions)
    facts = failures.read_knowledge(open_study("smoke")).pages["d"]
    assert classify(Case(answer, ["48.50"], 0, facts)) == kind


def predictions(texts, scores, pages):
    ids = [f"q{i}" for i in range(len(texts))]
    return pd.DataFrame({"question_id": ids, "doc_id": pages, "pages": [[1]]*len(ids), "evidence_pages": [[]]*len(ids), "benchmark": "docvqa", "doc_types": [["form"]] * len(ids), "question": "?",
                         "answers": [["Oak Shelf"]] * len(ids), "prediction": texts, "score": scores,
                         "confidence": np.linspace(.1, .9, len(ids)), "answer_tokens": 3})


@pytest.mark.parametrize("evidence, kind", [([2], "wrong page"), ([1], "wrong field"), ([1, 2], "wrong field"), ([], "wrong field")])
def test_a_text_of_a_page_without_the_answer(evidence, kind):
    first, second = PageFacts(["Wall", "Clock"]), PageFacts(["Oak", "Shelf"])
    known = Knowledge({"d": PageFacts(["Wall", "Clock", "Oak", "Shelf"], pages=[first, second])})
    frame = predictions(["Wall Clock"], [0.], ["d"]).assign(evidence_pages=[evidence])
    assert add_types(frame, known, {"docvqa": 9}).type.tolist() == [kind]


@pytest.mark.parametrize("pages", [["a", "b", "b"], ["a", "a", "a"]])
@pytest.mark.parametrize("seeds", [1, 2])
def test_report_of_few_questions(pages, seeds):
    frame = add_types(predictions(["Oak Shelf", "Oak Shell", ""], [1., 8 / 9, 0.], pages), Knowledge(), {"docvqa": 9})
    report = json.loads(json.dumps(failure_report(frame, [frame] * seeds, 50), allow_nan=False))
    shares = {row["name"]: row["share"] for row in report["types"]}
    assert set(shares) == set(TYPES[1:]) and sum(shares.values()) == pytest.approx(2 / 3)
    assert shares["wrong row"] == 0 and (report["types"][0]["ci95"] is None) == (len(set(pages)) == 1)
    assert report["transitions"]["fixed"]["value"] == report["transitions"]["broken"]["value"] == 0
    assert all(isinstance(hint, str) for hint in report["what_helps"])


def test_pages_of_others_are_unknown(tmp_path):
    assert read_knowledge(open_study("smoke", str(tmp_path))) == read_knowledge(open_study("qwen2-vl-2b")) == Knowledge()


@given(st.lists(st.tuples(texts, st.floats(0, 1)), min_size=1, max_size=5))
def test_vote_takes_a_most_frequent_answer(answers):
    names = [normalized_text(text) for text, _ in answers]
    chosen = vote([text for text, _ in answers], [confidence for _, confidence in answers])
    assert names.count(names[chosen]) == max(map(names.count, names))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_risk_coverage_ends_at_the_mean(pairs):
    frame = pd.DataFrame(pairs, columns=["score", "confidence"])
    curve = risk_coverage([frame])
    assert [point["coverage"] for point in curve] == list(COVERAGES) and curve[-1]["score"] == pytest.approx(frame.score.mean())


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(TYPES), st.sampled_from(TYPES), st.sampled_from("abc")), max_size=30), st.integers(0, 20))
def test_gallery_choice(rows, count):
    frame = lambda types: pd.DataFrame({"question_id": [f"q{i}" for i in range(len(rows))], "doc_id": [row[2] for row in rows],
                                        "benchmark": "docvqa", "type": types})
    before, after = frame([row[0] for row in rows]), frame([row[1] for row in rows])
    picked = choose_failures(before, after, count)
    failures = [i for i, row in enumerate(rows) if row[:2] != ("correct", "correct")]
    assert len(set(picked)) == len(picked) == min(count, len(failures)) and set(picked) <= set(failures)
    assert picked == choose_failures(before, after, count)


HOSTILE = ['<script>alert("x")</script>', "'><img src=x onerror=alert(1)>", "$\\frac{$", "{0} {data} %s", "\x00\x1b[31m\u202e", "\ud800", "&lt;",
           "a" * 5000, "", "日本語"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text(text, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt
    from docvlm.analysis import errors as gallery
    monkeypatch.setattr(gallery, "root", lambda: tmp_path)
    save_page(Image.new("RGB", (50, 40), "white"), tmp_path / "page.png", [5, 5, 900, 20])
    entry = dict.fromkeys(("question", "target", "base", "ours", "doc_type"), text) | {
        "error_before": "empty", "error_after": "correct", "image": "page.png"}
    html = gallery_html([entry])
    assert "<script" not in html and "<img src=x" not in html and "\x00" not in html and "\u202e" not in html
    assert all(printable_line(text).isprintable() and len(line) < 120 for _, line in caption_lines(entry))
    html.encode()
    figure = draw_gallery([entry], 1, 1)
    figure.canvas.draw()
    plt.close(figure)


def labelled(count=60, fields=("date", "total"), per_document=2):
    "Questions about documents, whose fields have a value of their own on each."
    names = [fields[n % len(fields)] for n in range(count)]
    return pd.DataFrame({"question_id": [f"q{n}" for n in range(count)], "doc_id": [f"{n//per_document}.pdf" for n in range(count)], "pages": [[1]]*count, "evidence_pages": [[]]*count,
                         "field": names, "benchmark": "docvqa", "question": [f"{name}?" for name in names],
                         "answers": [[f"{'May' if name == 'date' else 'USD'} {n}"] for n, name in enumerate(names)]})


def read(frame, accuracy=1., seed=0):
    "Predictions of a stub that gives the label, surely, or something else, less surely."
    rng = np.random.default_rng(seed)
    right = rng.random(len(frame)) < accuracy
    said = [answers[0] if good else f"misread {rng.integers(10**6)}" for answers, good in zip(frame.answers, right)]
    return frame.assign(prediction=said, confidence=np.where(right, .9, .5) + rng.uniform(-.05, .05, len(frame)), score=right.astype(float))


def test_planted_labels_are_another_document_s_value_of_the_same_field():
    frame = labelled()
    wrong, planted = plant_wrong_labels(frame, .05, 3)
    assert planted.sum() == 3 and frame.answers.equals(labelled().answers), "the questions themselves stay as they are"
    for i in frame.index[planted]:
        donors = frame[frame.answers.map(lambda answers: answers == wrong.answers[i])]
        assert len(donors) == 1 and donors.field.item() == frame.field[i] and donors.doc_id.item() != frame.doc_id[i]
    assert wrong.answers[~planted].equals(frame.answers[~planted])
    assert not plant_wrong_labels(frame, .05, 3)[1].equals(plant_wrong_labels(frame, .05, 4)[1])


@pytest.mark.parametrize("frame", [labelled(2), labelled(8, ("total",)).assign(answers=[["9"]]*8), labelled(6, tuple("abcdef"), 6)],
                         ids=["one document", "one value", "fields of one document"])
def test_nothing_is_planted_where_no_other_value_is(frame):
    assert not plant_wrong_labels(frame)[1].any() and measure_detection([read(frame)]) is None


def test_questions_that_are_no_fields_take_a_value_of_the_same_question_or_else_of_the_benchmark():
    frame = labelled().assign(field="")
    wrong, planted = plant_wrong_labels(frame, .5)
    assert planted.sum() == 30 and all(now[0][:3] == before[0][:3] for now, before in zip(wrong.answers, frame.answers))
    alone = frame.assign(question=frame.question_id)
    assert plant_wrong_labels(alone, .5)[1].sum() == 30


def test_a_perfect_reader_finds_every_planted_label_and_nothing_else():
    frame = read(labelled()).assign(confidence=.9)
    found = measure_detection([frame, frame])
    assert (found["precision"], found["recall"], found["precision_shown"]) == (1, 1, 1) and found["plantings"] == PLANTINGS
    assert found["planted"] == found["listed"] == 3


def test_detection_of_weaker_readers_is_measured():
    "Seeds that err apart agree on nothing wrong: what they list is planted; the weaker, the less is found."
    recalls = []
    for accuracy in (1., .8, .5):
        seeds = [read(labelled(400), accuracy, seed) for seed in (1, 2)]
        found = measure_detection(seeds)
        assert found["precision"] > .9
        recalls.append(found["recall"])
    assert recalls[0] > recalls[1] > recalls[2] > 0 and recalls[0] > .4


def test_a_systematic_error_is_a_false_alarm_and_is_counted_as_one():
    frame = labelled(200)
    seeds = [read(frame, 1, seed) for seed in (1, 2)]
    for seed in seeds: seed.loc[seed.index % 10 == 3, ["prediction", "confidence"]] = ["always this", .99]
    found = measure_detection(seeds)
    assert found["precision"] < .5 and len(find_suspects(seeds)) == 20


def suspects_of(*answered):
    "The suspects among (label, confidence, answers of the seeds), each on a page of its own, beside ten that are right at 0.8."
    answered = [*answered, *[("same", .8, "same", "same")]*10]
    count = len(answered[0]) - 2
    frame = labelled(len(answered), ("total",), 1).assign(answers=[[label] for label, *_ in answered], confidence=[sure for _, sure, *_ in answered])
    return find_suspects([frame.assign(prediction=[row[2 + seed] for row in answered]) for seed in range(count)]).question_id.tolist()


@pytest.mark.parametrize("label, confidence, said, listed", [
    ("Ann", .9, ("Bob", "Bob"), True), ("Ann", .9, ("Bob", "bob. "), True), ("Ann", .9, ("Bob", "Rob"), False), ("Ann", .7, ("Bob", "Bob"), False),
    ("Ann", .9, ("ann", "Ann"), False), ("12.00", .9, ("12", "12"), False), ("2014-12-17", .9, ("17-Dec-14", "17-Dec-14"), False),
    ("", .9, ("", ""), False), ("", .9, ("Ann", "Ann"), True), ("Ann", .9, ("", ""), True), ("Ann", .8, ("Bob", "Bob"), True)])
def test_which_labels_are_suspect(label, confidence, said, listed):
    assert suspects_of((label, confidence, *said)) == (["q0"] if listed else [])


def test_the_worst_comes_first_and_a_class_that_is_never_right_lists_nothing():
    assert suspects_of(("Anna", .9, "Anne", "Anne"), ("Ann", .9, "Zebra", "Zebra"), ("Ann", .99, "Zebra", "Zebra")) == ["q2", "q1", "q0"]
    frame = read(labelled())
    frame.loc[frame.field == "total", "prediction"] = "nonsense"
    assert find_suspects([frame, frame]).empty
    assert suspects_of(("Ann", .9, "Bob")) == ["q0"], "a single seed agrees with itself"


def test_a_class_whose_confident_answers_are_mostly_wrong_lists_nothing():
    "One right answer of low confidence among wrong ones: the model is at fault, not the labels."
    assert suspects_of(*[("Ann", .9, f"Bob {n}", f"Bob {n}") for n in range(9)]) and not suspects_of(*[("Ann", .9, "Bob", "Bob")]*10)


@pytest.mark.parametrize("text", HOSTILE[:-2] + ["日本語", "../../x"])
def test_suspects_are_listed_with_their_page(text, tmp_path, monkeypatch):
    from docvlm import failures
    from docvlm.inputs.sources import rows_dataset
    monkeypatch.setattr(failures, "root", lambda: tmp_path)
    text = text.encode("utf-8", "replace").decode()
    frame = labelled(SUSPECTS_SHOWN + 30, ("total",), 1)
    seed = read(frame).assign(confidence=.9)
    seed.loc[:SUSPECTS_SHOWN + 1, "prediction"] = text or "-"
    frame.loc[0, "question_id"] = seed.loc[0, "question_id"] = f"/../{text}"
    Image.new("RGB", (30, 20), "white").save(tmp_path/"page.png")
    (tmp_path/"suspects").mkdir()
    (tmp_path/"suspects/old.png").write_bytes(b"")
    rows = rows_dataset([{"images": [str(tmp_path/"page.png")], "doc_types": [], "split": "test", "source": "folder"}
                         | {name: row[name] for name in ("question_id", "doc_id", "pages", "evidence_pages", "field", "benchmark", "question", "answers")}
                         for row in frame.to_dict("records")])
    found = json.loads(json.dumps(suspect_entries(seed.assign(prediction="base"), [seed, seed], rows, tmp_path/"suspects"), allow_nan=False))
    pictures = [entry["image"] for entry in found["listed"] if entry["image"]]
    assert len(found["listed"]) == SUSPECTS_SHOWN + 2 and len(pictures) == SUSPECTS_SHOWN and found["questions"] == len(frame)
    assert sorted(pictures) == sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path/"suspects").iterdir())
    assert {entry["answer"] for entry in found["listed"]} == {text or "-"} and found["listed"][0]["base"] == "base"
