"Error types hold for whatever a model, a target or a page says."
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from docvlm.core import open_study
from docvlm.failures import Knowledge, add_types, failure_report, read_knowledge
from docvlm.analysis.errors import caption_lines, choose_failures, draw_gallery, gallery_html, printable_line, save_page
from docvlm.analysis.metrics import BENCHMARK_METRICS, score
from docvlm.failures import COVERAGES, risk_coverage, vote
from docvlm.analysis.errors import COMPUTED, FULL_SCORE, TYPES, PageFacts, classify, days, numbers, normalized_text

TRAPS = ["", " ", "\x00", "-", "%", "1.2.3", "1e999", "٣", "½", "9" * 400, "31/31/31", "10 10 10 utc+99", "Yes", "$1,234.50",
         "12 Mar 2020", "NaN", "inf", "İ", "ﬁ", "<b>&amp;</b>", "$\\frac{1}$", "a" * 2000, "2020-13-45", "0000-00-00", "99999999999 jan 1"]
texts = st.text(max_size=40) | st.sampled_from(TRAPS) | st.from_regex(r"[0-9a-zA-Z ,./-]{4,24}", fullmatch=True)
pages = st.builds(PageFacts, words=st.lists(texts, max_size=12), fields=st.dictionaries(texts, texts, max_size=4),
                  table=st.lists(st.lists(texts, max_size=3), max_size=3))
kinds = st.sampled_from([*COMPUTED, "", "lookup", "cell"])


@settings(max_examples=400, deadline=None)
@given(texts, st.lists(texts, min_size=1, max_size=4), st.floats(0, 1), st.sampled_from(sorted(BENCHMARK_METRICS)), pages, kinds,
       st.booleans())
def test_every_answer_has_one_known_type(prediction, answers, value, benchmark, page, kind, cut):
    found = classify(prediction, answers, value, benchmark, page, kind, cut)
    assert found in TYPES
    assert (found == "correct") == (value >= FULL_SCORE[BENCHMARK_METRICS[benchmark]])
    if page.phrases: assert found != "other"


@settings(max_examples=200, deadline=None)
@given(texts, st.lists(texts, min_size=1, max_size=3), st.sampled_from(sorted(BENCHMARK_METRICS)))
def test_full_marks_are_correct(prediction, answers, benchmark):
    value = score(benchmark, prediction, answers)
    assert (classify(prediction, answers, value, benchmark) == "correct") == (value == 1)


@settings(max_examples=300, deadline=None)
@given(texts)
def test_readings_never_raise(text):
    assert all(np.isfinite(number) for number in numbers(normalized_text(text)))
    days(normalized_text(text))


@pytest.mark.parametrize("printed, answered", [("$1,234.50", "1.234,50 €"), ("29/12/2022", "December 29, 2022"), ("17-Dec-14", "2014-12-17"),
                                               ("12%", "0.12"), ("[X] Yes", "x yes"), ("1,234", "1234"), ("£453.38", "453,38 GBP")])
def test_the_same_value_in_another_format(printed, answered):
    assert classify(answered, [printed], 0, "docvqa") == classify(printed, [answered], 0, "docvqa") == "format"


def test_an_unknown_benchmark_is_named():
    with pytest.raises(ValueError, match="vqa9000.*docvqa"): classify("a", ["a"], 0, "vqa9000")


def predictions(texts, scores, pages):
    ids = [f"q{i}" for i in range(len(texts))]
    return pd.DataFrame({"question_id": ids, "doc_id": pages, "benchmark": "docvqa", "doc_types": [["form"]] * len(ids), "question": "?",
                         "answers": [["Oak Shelf"]] * len(ids), "prediction": texts, "score": scores,
                         "confidence": np.linspace(.1, .9, len(ids)), "answer_tokens": 3})


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
