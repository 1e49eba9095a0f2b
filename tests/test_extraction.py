"Values of fields: right, missing, invented; per field, over all fields and by document, whatever a model or a label says."
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anls_star import anls_score
from hypothesis import given, settings
from hypothesis import strategies as st

from docvlm.analysis.extraction import anls_star, compare_f1, count_values, exact_match, extraction_scores, parts_of, rates
from docvlm.analysis.metrics import METRICS, squeezed

BLANK = ["", " ", "\n\t", "\u00a0", "\u3000"]
texts = st.text(max_size=12) | st.sampled_from(BLANK + ["0", ".", "-", "%", "nan", "9.00", "A; B", "\x00", "a\nb", "; ;"])


@pytest.mark.parametrize("metric", [*METRICS.values(), exact_match], ids=lambda metric: metric.__name__)
def test_an_empty_target_wants_an_empty_answer(metric):
    assert metric("", [""]) == metric(" \n", [""]) == metric("", ["total", ""]) == 1
    assert all(metric(said, [""]) == 0 for said in ("0", ".", "-", "%", "none", "n/a"))
    assert all(metric(said, [wanted]) == 0 for said in BLANK for wanted in ("0", "9.00", "total", "."))


@pytest.mark.parametrize("metric", [*METRICS.values(), exact_match], ids=lambda metric: metric.__name__)
@given(texts.filter(squeezed))
def test_empty_and_not_empty_never_match(metric, text):
    assert metric(text, [""]) == 0 and metric("", [text]) == 0


def frame(*answered, fields=("total",)):
    "Questions about documents in turn, `fields` of each: (prediction, *accepted answers)."
    return pd.DataFrame({"doc_id": [f"{n//len(fields)}.pdf" for n in range(len(answered))], "field": [fields[n % len(fields)] for n in range(len(answered))],
                         "prediction": [said for said, *_ in answered], "answers": [list(accepted) for _, *accepted in answered]})


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=8))
def test_counts_follow_the_definition(questions):
    "True positives, false positives and false negatives counted one by one."
    part = frame(*((said, *accepted) for said, accepted in questions))
    right, given_, due = count_values(part).sum(0)
    hits = misses = alarms = 0
    for said, accepted in questions:
        good, wanted = exact_match(said, accepted) == 1, all(map(squeezed, accepted))
        hits += bool(squeezed(said)) and good
        alarms += bool(squeezed(said)) and not good
        misses += wanted and not good
    assert (right, given_ - right, due - right) == (hits, alarms, misses)
    precision, recall, f1 = rates([right, given_, due])
    assert all(np.isnan(value) or 0 <= value <= 1 for value in (precision, recall, f1))
    if hits: assert f1 == pytest.approx(2*precision*recall/(precision + recall))


def test_a_wrong_value_counts_against_precision_and_recall():
    counts = count_values(frame(("8", "9"), ("9", "9"), ("", "9"), ("9", ""), ("", "")))
    assert rates(counts.sum(0))[:2] == (1/3, 1/3)


@pytest.mark.parametrize("said, accepted, value", [
    ("9", ["9", "nine"], 1), ("Ann", [""], 0), ("", [""], 1), ("", ["Ann"], 0), ("b; a", ["a; b"], 1), ("a", ["a; b"], .5),
    ("a; b; c", ["a; b"], 2/3), ("a\nb", ["b\na"], 1), ("", ["a; b"], 0), ("a; b", ["", "b; a"], 1), ("", ["", "b; a"], 1),
    (";", ["a; b"], 0), ("a; b", [";"], 0), ("Zoe\u0301", ["Zo\u00e9"], 1)])
def test_anls_star_of_one_value(said, accepted, value):
    assert anls_star(frame((said, *accepted))) == pytest.approx(value)


def test_anls_star_is_that_of_the_package_on_a_document():
    document = frame(("9.0", "9.00"), ("b; a", "a; b"), ("", ""), ("Ann", ""), fields=("total", "items", "due", "customer"))
    theirs = anls_score({"total": "9.00", "items": ["a", "b"], "due": None}, {"total": "9.0", "items": ["b", "a"], "due": None, "customer": "Ann"})
    assert anls_star(document) == pytest.approx(theirs) == pytest.approx(3.75/5)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=2)), min_size=1, max_size=5))
def test_anls_star_takes_any_text(questions):
    assert 0 <= anls_star(frame(*((said, *accepted) for said, accepted in questions))) <= 1
    assert all(part == part.strip() and part for said, _ in questions for part in parts_of(said))


def test_scores_by_field_over_all_fields_and_by_document():
    fields = ("total", "date")
    base = frame(("9", "9"), ("1 May", ""), ("8", "8"), ("2 May", "2 May"), ("", "7"), ("", ""), fields=fields)
    ours = [frame(("9", "9"), ("", ""), ("8", "8"), ("2 May", "2 May"), ("7", "7"), (said, ""), fields=fields) for said in ("", "x")]
    found = json.loads(json.dumps(extraction_scores(base, ours, [42, 43], 50), allow_nan=False))
    assert list(found["by_field"]) == list(fields) and found["by_field"]["date"]["present"] == 1
    assert found["by_field"]["total"]["exact"]["baseline"]["value"] == 2/3 and found["all"]["exact"]["delta"]["value"] == pytest.approx(11/12 - 4/6)
    assert found["documents"]["right"]["baseline"]["value"] == 1/3
    assert found["documents"]["right"]["ours"]["per_seed"] == {"42": 1, "43": 2/3}
    assert found["by_field"]["date"]["f1"]["ours"]["precision"] == 2/3 and found["by_field"]["date"]["f1"]["baseline"]["precision"] == .5


def test_questions_that_are_not_fields_are_left_out():
    base = pd.concat([frame(("9", "9"), ("8", "9")), frame(("x", "y")).assign(field="")], ignore_index=True)
    assert extraction_scores(base, [base], [42], 20)["all"]["questions"] == 2
    assert extraction_scores(base[base.field == ""], [base[base.field == ""]], [42], 20) is None


def test_one_document_has_no_interval_and_an_absent_field_no_f1():
    base = frame(("", ""), ("9", "9"), fields=("date", "total"))
    found = json.loads(json.dumps(extraction_scores(base, [base], [42], 20), allow_nan=False))
    assert found["by_field"]["date"]["f1"]["ours"] == {"value": None, "ci95": None, "precision": None, "recall": None}
    assert found["by_field"]["date"]["f1"]["delta"] == {"value": None, "ci95": None}
    assert found["by_field"]["total"]["exact"]["delta"] == {"value": 0, "ci95": None, "p_value": None}
    assert found["documents"]["right"]["ours"]["ci95"] is None


def test_a_document_with_a_field_asked_on_several_pages_is_right_if_all_are():
    base = frame(("9", "9"), ("8", "9"), ("9", "9"), ("9", "9")).assign(doc_id=["a.pdf", "a.pdf", "b.pdf", "b.pdf"])
    found = extraction_scores(base, [base], [42], 20)
    assert found["documents"]["right"]["ours"]["value"] == .5 and found["by_field"]["total"]["documents"] == 2


def test_intervals_are_by_document_not_by_question():
    "Twenty fields of a document that are right or wrong together are one observation."
    right = np.repeat(np.arange(12) % 2, 20).astype(float)
    counts = np.stack([right, np.ones(240), np.ones(240)], 1)
    width = lambda documents: np.ptp(compare_f1(counts, counts[None], documents, 1000)["ours"]["ci95"])
    assert width(np.repeat(np.arange(12), 20)) > 3*width(np.arange(240))


def test_fields_of_real_receipts_are_scored():
    folder = Path(__file__).resolve().parents[2]/"shared/real/receipts/test"
    if not folder.exists(): pytest.skip("../shared/real/receipts is not here")
    rows = [json.loads(line) for line in (folder/"metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    label = pd.DataFrame({"doc_id": [row["docId"] for row in rows], "field": [row["field"] for row in rows], "answers": [row["answers"] for row in rows]})
    label["prediction"] = label.answers.str[0]
    found = extraction_scores(label.assign(prediction=""), [label], [42], 100)
    assert set(found["by_field"]) == {"company", "date", "address", "total"}
    assert found["documents"]["right"]["ours"]["value"] == found["documents"]["anls_star"]["ours"]["value"] == found["all"]["f1"]["ours"]["value"] == 1
    assert found["all"]["f1"]["baseline"] == {"value": 0, "ci95": [0, 0], "precision": None, "recall": 0}
