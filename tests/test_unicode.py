"The same words in another Unicode form are the same words, wherever answers and questions are compared."
import random
import unicodedata

import pytest
from datasets import Dataset

from docvlm.inputs.leakage import _question_keys
from docvlm.analysis.metrics import anls, parse_number, relaxed_accuracy, relaxed_accuracy_strict, score, squeezed
from docvlm.baselines.ocr import letters_and_digits
from docvlm.failures import vote
from docvlm.analysis.errors import Case, classify, normalized_text

WORDS = ["Zoé", "Müller & Söhne", "김민수", "Việt Nam", "Ångström", "ÇALIŞMA", "がぎぐげご", "Ёлка", "naïve café", "ΐ"]


def forms(text): return [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]


@pytest.mark.parametrize("word", WORDS)
def test_every_comparison_takes_both_forms_for_one(word):
    one, two = forms(word)
    assert one != two, "else nothing is tested"
    for a, b in ((one, two), (two, one)):
        assert anls(a, [b]) == relaxed_accuracy(a, [b]) == relaxed_accuracy_strict(a, [b]) == 1
        assert all(score(benchmark, a, ["other", b.upper().lower()]) in (0, 1) for benchmark in ("docvqa", "chartqa"))
        assert classify(Case(a, [b], anls(a, [b]))) == "correct"
    assert squeezed(one) == squeezed(two) and normalized_text(one) == normalized_text(two) and letters_and_digits(one) == letters_and_digits(two)


def test_an_accent_still_counts():
    assert anls("Zoe", ["Zoé"]) == anls("Zoe", [unicodedata.normalize("NFD", "Zoé")]) == pytest.approx(2/3)
    assert relaxed_accuracy("Zoe", ["Zoé"]) == relaxed_accuracy_strict("Zoe", ["Zoé"]) == 0


def harness_anls(prediction, targets):
    "As lmms-eval and VLMEvalKit compare: lower case, white space collapsed, no normal form."
    from rapidfuzz.distance import Levenshtein
    same = lambda text: " ".join(text.lower().split())
    best = max(Levenshtein.normalized_similarity(same(prediction), same(target)) for target in targets)
    return best if best >= .5 else 0


def test_composed_text_scores_as_in_the_harnesses():
    rng = random.Random(0)
    letters = "aé ßŞİıÅ김수がΐϊ漢½²ﬁ１−-12.,%$"
    assert unicodedata.is_normalized("NFC", letters)
    draw = lambda: unicodedata.normalize("NFC", "".join(rng.choices(letters, k=rng.randrange(9))))
    for prediction, target in ((draw(), draw()) for _ in range(20_000)):
        assert anls(prediction, [target]) == harness_anls(prediction, [target])


@pytest.mark.parametrize("text, value", [
    ("−3", -3), ("－3", -3), ("−$1,234.5", -1234.5), ("１２", 12), ("１，２３４", 1234), ("12％", .12), ("12\u00a0%", .12), ("￥500", 500), ("＄5", 5),
    ("1\u2009234", 1234), ("1\u202f234\u202f567.5", 1234567.5), ("−1\u00a0234", -1234), ("1 234", None), ("12\u2009345\u200967", None), ("3−5", None)])
def test_typeset_numbers_are_numbers_in_the_strict_variant(text, value):
    assert parse_number(text) == (pytest.approx(value) if value is not None else None)
    if value is not None: assert relaxed_accuracy_strict(text, [str(value)]) == relaxed_accuracy_strict(str(value), [text]) == 1


def test_the_headline_reads_numbers_as_the_harnesses_do():
    assert relaxed_accuracy("−3", ["-3"]) == 0 and relaxed_accuracy("１２", ["12"]) == 1 and relaxed_accuracy("−3", ["−3"]) == 1


def test_a_typeset_number_is_the_right_value_in_another_format():
    assert classify(Case("−3", ["-3"], 0.0)) == "format" and classify(Case("1\u2009234", ["1234"], 0.0)) == "format"


def test_seeds_that_say_the_same_vote_together():
    one, two = forms("Zoé")
    assert vote([one, "Max", two], [.3, .9, .4]) == 2


def test_a_question_leaks_in_either_form():
    rows = [Dataset.from_dict({"doc_id": ["d"], "pages": [[1]], "question_id": ["q"], "question": [f"Who is {name}?"], "answers": [[name]]}) for name in forms("Zoé")]
    assert _question_keys(rows[0]).key.tolist() == _question_keys(rows[1]).key.tolist()


def test_a_settings_file_of_another_project_may_have_any_encoding(tmp_path, monkeypatch):
    from docvlm.files import root
    monkeypatch.chdir(tmp_path)
    (tmp_path/"settings.ini").write_bytes("author = Müller".encode("latin-1"))
    assert root.__wrapped__() == root()
