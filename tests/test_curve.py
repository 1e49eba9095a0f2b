"How many pages must I label? The parts, their cost, the estimate and its sentence; what a test set can show; what was forgotten."
# ruff: noqa: F811 (imported fixtures)
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from docvlm import ablation, evaluation, training
from docvlm.ablation import estimated_minutes, learning_curve, nested_documents, plan_curve, power
from docvlm.analysis.metrics import gain_of_doubling, smallest_difference
from docvlm.core import Study, open_study
from docvlm.files import StudyError
from docvlm.inputs.images import page_ids
from docvlm.presets import get_preset
from docvlm.steps import Step
from test_report import HOSTILE, cell, fill, html_of, no_figures, study, synthetic_results  # noqa: F401, fixtures among them


def rows_of(documents, pages=1, types=("bill", "memo")):
    "Training rows: two questions on every page of every document."
    asked = [(f"doc{d}", page + 1, [types[d % len(types)]] if types else []) for d in range(documents) for page in range(pages) for _ in "ab"]
    return Dataset.from_dict({"doc_id": [a[0] for a in asked], "pages": [[a[1]] for a in asked], "doc_types": [a[2] for a in asked]})


class Made(Study):
    "A study of made-up results: an adapter took 80 seconds for 196 steps of 5 pages."
    def result(self, name):
        return {"data": {"splits": {"test": {"questions": 1200}}},
                "training": {"setup": {"steps": 196, "pages_per_step": 5, "epochs": 1},
                             "seeds": {str(s): {"train_s": 80} for s in self.preset.seeds}},
                "evaluation": {"throughput": {"base": {"questions_per_s": 100}},
                               "benchmarks": {"docvqa": {"ours": {"per_seed": {"42": .5, "43": .501, "44": .499}}}}}}[name]


def made(**changes): return Made(replace(get_preset("smoke"), **changes))


@pytest.fixture
def curve_of(monkeypatch):
    "A function that runs `learning_curve` where the score depends on the number of documents as given; and what was trained."
    def run(documents, score_of, noise=.01, test_documents=60, benchmarks=("docvqa",), **changes):
        trained = []
        page_effect = np.random.default_rng(0).normal(0, .1, test_documents)
        def answers(count):
            own = np.random.default_rng(count).normal(0, noise, test_documents)
            parts = [pd.DataFrame({"doc_id": [f"t{n}" for n in range(test_documents)], "pages": [[1]]*test_documents, "benchmark": b, "score": score_of(count) + page_effect + own}) for b in benchmarks]
            return pd.concat(parts, ignore_index=True)
        def train(study, rank, seed, doc_ids=()):
            trained.append(doc_ids)
            return {"steps": 150, "epochs": 1.5, "train_s": 60., "adapter": f"adapters/{len(doc_ids) or documents}"}
        count_of = lambda name: int(name.split("-")[3]) if name.endswith("documents") else documents
        monkeypatch.setattr(ablation, "load_splits", lambda study: {"train": rows_of(documents)})
        monkeypatch.setattr(ablation, "train_adapter", train)
        monkeypatch.setattr(ablation, "predict_systems", lambda study, adapters: ({"base": answers(0)} | {n: answers(count_of(n)) for n in adapters}, {}))
        return *learning_curve(made(**changes)), trained
    return run


# the sentence

@pytest.mark.parametrize("rise, said, unsaid", [
    (.05, "by about +", "clear"), (-.05, "by about −", "clear"), (0, "no clear change on DocVQA", "by about")])
def test_gain_loss_and_nothing_are_told_apart(curve_of, rise, said, unsaid):
    found, *_ = curve_of(64, lambda count: .5 + rise*np.log2(1 + count/64))
    low, high = found["doubling"]["docvqa"]["ci95"]
    text = found["pages_answer"]
    assert text.startswith("Twice the 64 training pages would ") and "95 % interval" in text
    assert "holds for no more than twice the pages" in text and "at 16 to 64 pages" in text
    assert (low > 0) is (rise > 0) and (high < 0) is (rise < 0)
    assert said in text and unsaid not in text


def test_three_training_documents_have_no_curve_and_nothing_is_trained(curve_of):
    found, adapters, trained = curve_of(3, lambda count: .5)
    assert found["learning_curve"] == [] and found["doubling"] == {} and adapters == trained == []
    assert "no learning curve" in found["pages_answer"] and "at least 4 documents" in found["pages_answer"]
    assert [left["documents"] for left in found["fractions_left_out"]] == [1, 2]


def test_a_noisy_test_set_is_said_to_be_too_wide_to_plan_by(curve_of):
    found, *_ = curve_of(64, lambda count: .5, noise=.5, test_documents=12)
    assert "no clear change on DocVQA" in found["pages_answer"] and "too wide to plan by)" in found["pages_answer"]


def test_a_single_test_document_gives_no_interval(curve_of):
    found, *_ = curve_of(64, lambda count: .5, test_documents=1)
    assert found["doubling"] == {"docvqa": None} and found["pages_answer"].endswith(
        "would change the score on DocVQA by an unknown amount (a single test document, or the same scores everywhere).")
    assert found["learning_curve"][-1]["docvqa"]["ci95"] is None


def test_the_same_scores_everywhere_are_no_estimate_of_zero(curve_of, monkeypatch):
    run = curve_of
    run(64, lambda count: .5)
    same = ablation.predict_systems(None, {})[0]["base"]
    monkeypatch.setattr(ablation, "predict_systems", lambda study, adapters: (dict.fromkeys(["base", *adapters], same), {}))
    found, _ = learning_curve(made())
    assert found["doubling"] == {"docvqa": None}


def test_every_benchmark_is_told_in_the_order_of_the_report(curve_of, monkeypatch):
    cells = {b: {"ours": {"per_seed": {"42": .5}}} for b in ("infovqa", "docvqa", "chartqa")}
    plain = Made.result
    monkeypatch.setattr(Made, "result", lambda self, name: plain(self, name) | ({"benchmarks": cells} if name == "evaluation" else {}))
    found, *_ = curve_of(64, lambda count: .5, benchmarks=tuple(cells))
    places = [found["pages_answer"].index(name) for name in ("DocVQA", "ChartQA", "InfographicVQA")]
    assert places == sorted(places) and set(found["doubling"]) == set(cells)


def test_the_estimate_goes_no_further_than_a_perfect_score():
    pages, clusters = [100, 200, 400], np.repeat(np.arange(20), 2)
    rng = np.random.default_rng(0)
    full = gain_of_doubling(pages, [np.clip(rng.normal(m, .02, 40), 0, 1) for m in (.80, .90, .985)], clusters)
    assert 0 < full["value"] <= .02 and full["ci95"][1] <= .02
    lost = gain_of_doubling(pages, [np.full(40, s) for s in (.2, .1, .01)], clusters)
    assert lost["value"] == pytest.approx(-.01)


def test_differing_seeds_widen_the_interval_and_one_seed_does_not():
    rng, pages, clusters = np.random.default_rng(0), [100, 200, 400], np.arange(60)
    scores = rng.normal(.5, .1, 60) + rng.normal(0, .05, (3, 60))
    width = lambda seeds: np.ptp(gain_of_doubling(pages, scores, clusters, seeds)["ci95"])
    assert width([.5]) == width([]) == width([.5, .5]) < width([.5, .51]) < width([.45, .55])


# the parts

@pytest.mark.parametrize("types", [("bill",), ("bill", "memo", "form"), ()])
def test_parts_are_nested_whole_documents_with_every_type(types):
    rows = rows_of(30, pages=3, types=types)
    order = nested_documents(rows, 7)
    assert sorted(order) == sorted(set(rows["doc_id"])) and order == nested_documents(rows, 7) != nested_documents(rows, 8)
    for count in (6, 15):
        of = dict(zip(rows["doc_id"], rows["doc_types"]))
        found = pd.Series([next(iter(of[doc]), "") for doc in order[:count]]).value_counts()
        assert found.max() - found.min() <= 1, found


def test_documents_of_several_pages_are_counted_by_page(curve_of, monkeypatch):
    run = curve_of
    found, _, trained = run(16, lambda count: .5)
    assert [p["pages"] for p in found["learning_curve"]] == [0, 4, 8, 16]
    assert set(trained[0]) < set(trained[1]) and trained[2] == (), "nested parts, then all documents, which is the study's own adapter"
    monkeypatch.setattr(ablation, "load_splits", lambda study: {"train": rows_of(16, pages=3)})
    again, _ = learning_curve(made())
    assert [(p["documents"], p["pages"], p["questions"]) for p in again["learning_curve"]] == [(0, 0, 0), (4, 12, 24), (8, 24, 48), (16, 48, 96)]


def test_the_cost_is_said_beforehand_and_fractions_beyond_the_limit_are_left_out(curve_of, capsys):
    found, *_ = curve_of(64, lambda count: .5, min_steps=150)
    said = capsys.readouterr().err
    assert said == "docvlm: learning curve on 16 and 32 of 64 training documents, about 2.4 minutes (curve_minutes limits it)\n"
    assert sum(p["estimated_s"] for p in found["learning_curve"]) == pytest.approx(2*(80*150/196 + 12))
    found, _, trained = curve_of(64, lambda count: .5, min_steps=150, curve_minutes=2)
    assert [p["documents"] for p in found["learning_curve"]] == [0, 16, 64] and len(trained) == 2
    assert found["fractions_left_out"] == [{"fraction": .5, "documents": 32, "reason": "about 2.4 minutes in all, more than the limit of 2"}]
    assert "at 16 to 64 pages" in found["pages_answer"]


def test_no_time_no_curve(curve_of):
    found, _, trained = curve_of(64, lambda count: .5, curve_minutes=0)
    assert found["learning_curve"] == [] and trained == [] and "the limit of 0" in found["pages_answer"]
    assert curve_of(64, lambda count: .5, curve_fractions=())[0]["pages_answer"].endswith("is not known: curve_fractions is empty.")


@pytest.mark.parametrize("documents, fractions, planned", [(8, (1/4, 1/2), [4]), (16, (1/4, 1/2), [4, 8]), (7, (1/4, 1/2), [4]), (9, (.99, .5), [4]), (1, (1/2,), []), (100, (.1, .1001), [10])])
def test_a_part_has_at_least_four_documents_and_fewer_than_all(documents, fractions, planned):
    assert list(plan_curve(made(curve_fractions=fractions), documents)[0]) == planned


def test_the_expected_time_is_never_that_of_fewer_than_the_fewest_steps():
    assert estimated_minutes(made(min_steps=10**4), 1/8) > 50*estimated_minutes(made(min_steps=1), 1/8)


def test_an_adapter_of_a_part_has_a_folder_and_a_key_of_its_own(monkeypatch):
    study, keys = open_study("smoke"), []
    monkeypatch.setattr(Step, "key", lambda self: "key")
    monkeypatch.setattr(training, "_finished", lambda folder, key: keys.append((folder.name, key)) or {"steps": 1})
    for doc_ids in ((), ("a", "b"), ("a", "c")): training.train_adapter(study, 16, 42, doc_ids=doc_ids)
    assert [name for name, _ in keys] == ["lora-r16-seed42", "lora-r16-seed42-2-documents", "lora-r16-seed42-2-documents"]
    assert len({key for _, key in keys}) == 3, "other documents are another adapter"


# power

def test_the_smallest_difference_shrinks_with_the_pages_and_needs_two():
    rng = np.random.default_rng(0)
    of = lambda pages: smallest_difference(np.zeros(pages), rng.normal(0, .3, pages), np.arange(pages))["smallest_difference"]
    assert of(400) < of(100) < of(25) and of(100) == pytest.approx(2.8*.3/10, rel=.25)
    assert smallest_difference([0], [1], ["a"]) is None and smallest_difference([0, 0], [1, 1], ["a", "b"]) is None


def test_power_is_by_benchmark_and_none_where_it_cannot_be_estimated(monkeypatch):
    frame = pd.DataFrame({"doc_id": list("abcd") + ["x", "x"], "benchmark": ["docvqa"]*4 + ["chartqa"]*2, "score": 0.})
    ours = [frame.assign(score=[0, 1, .5, 1, 1, 1]), frame.assign(score=[0, 1, 1, 1, 0, 1])]
    monkeypatch.setattr(ablation, "predict_systems", lambda study, adapters: ({"base": frame} | dict(zip(adapters, ours)), {}))
    found = power(made(seeds=(42, 43)))
    assert found["chartqa"] is None and found["docvqa"]["smallest_difference"] > found["docvqa"]["standard_error"] > 0


# what was forgotten

def test_own_questions_are_a_fixed_sample_of_whole_pages(tmp_path):
    study = replace(open_study("smoke"), documents=str(tmp_path))
    rows, again = evaluation.own_questions(study), evaluation.own_questions(study)
    every = evaluation.load_splits(open_study("smoke"))["test"]
    assert rows["question_id"][:] == again["question_id"][:] and 0 < len(rows) <= evaluation.OWN_QUESTIONS
    whole = pd.Series(page_ids(every)).value_counts()
    assert (pd.Series(page_ids(rows)).value_counts() == whole[sorted(set(page_ids(rows)))].reindex(pd.Series(page_ids(rows)).value_counts().index)).all()
    assert set(rows["source"]) == {"generated"}


def test_a_hub_that_cannot_be_reached_is_said_and_is_no_failure(monkeypatch, tmp_path):
    def gone(sources): raise StudyError("3 of 3 sources are not available:\nDocVQA validation: lmms-lab/DocVQA is not on this disk")
    monkeypatch.setattr(evaluation, "check_sources", gone)
    monkeypatch.setattr(evaluation, "predict_systems", lambda *args, **options: pytest.fail("nothing to answer"))
    lost, systems = evaluation.forgotten(Study(get_preset("qwen2-vl-2b"), str(tmp_path)), {})
    assert lost["comparison"] is None and "not available" in lost["note"] and systems == []


def test_what_was_forgotten_compares_the_same_questions_by_page(monkeypatch, tmp_path):
    base = pd.DataFrame({"doc_id": list("aabbcc"), "pages": [[1]]*6, "benchmark": ["docvqa"]*4 + ["chartqa"]*2, "score": 1.})
    asked = []
    def predict(study, adapters, rows, mark):
        asked.append((len(rows), mark))
        return {"base@own": base} | {name + mark: base.assign(score=[0, 1, 1, 1, 1, 1.]) for name in adapters}, {}
    monkeypatch.setattr(evaluation, "predict_systems", predict)
    study = replace(open_study("smoke"), documents=str(tmp_path))
    lost, systems = evaluation.forgotten(study, {"lora-r16-seed42": tmp_path, "lora-r16-seed43": tmp_path})
    cell = lost["comparison"]
    assert cell["delta"]["value"] == pytest.approx(-1/6) and cell["delta"]["ci95"] and cell["metric"] == "anls/relaxed_accuracy"
    assert set(cell["ours"]["per_seed"]) == {"42", "43"} and asked[0][1] == "@own" and len(systems) == 3


def test_templates_count_for_the_evaluation_of_a_users_documents_alone(monkeypatch, tmp_path):
    "The preset's own pages are drawn from the templates, so an edited one makes what was forgotten stale."
    from docvlm import steps
    monkeypatch.setattr(steps, "documents_digest", lambda folder: "d")
    monkeypatch.setattr(Step, "read", lambda self, seen=None: {})
    own, users = open_study("smoke"), replace(open_study("smoke"), documents=str(tmp_path))
    inputs = lambda study, name: set(study.step(name).inputs())
    assert "templates" in inputs(own, "data") and "templates" not in inputs(own, "evaluation")
    assert "templates" in inputs(users, "evaluation") and "templates" not in inputs(users, "data")


# the report

def report_with(study, monkeypatch, ablation_fields, evaluation_fields=()):
    "The report's page where the two results have these fields as well."
    results = synthetic_results(["page.png"])
    results["ablation"] |= json.loads(json.dumps(ablation_fields))
    results["evaluation"] |= dict(evaluation_fields)
    monkeypatch.setattr(sys.modules["test_report"], "synthetic_results", lambda images, **options: results)
    fill(study)
    return html_of(study)


def test_the_report_answers_how_many_pages_and_shows_curve_and_power(study, monkeypatch, curve_of):
    curve, *_ = curve_of(64, lambda count: .5 + .01*count/64, curve_fractions=(1/16, 1/4, 1/2), curve_minutes=1.6)
    page = report_with(study, monkeypatch, curve | {"power": {"docvqa": {"standard_error": .01, "smallest_difference": .028}, "chartqa": None}})
    assert page.count("How many pages must I label?") == 2, "among the answers and as a section"
    assert "Twice the 64 training pages" in page and "Learning curve: scores with 95 % intervals" in page
    assert re.search(r"<li>\s*(<p>)?50.0 % of the documents \(32\) were left out: about 1.7 minutes", page) and "Hestness" in page and "Card" in page
    assert ">2.8<" in page and "not measured" in page


def test_a_study_without_a_curve_says_why(study, monkeypatch, curve_of):
    curve, *_ = curve_of(3, lambda count: .5)
    page = report_with(study, monkeypatch, curve | {"power": {}})
    assert "There is no learning curve" in page and "a point needs at least 4 documents" in page and "Learning curve: scores" not in page


def test_results_of_before_the_curve_still_make_a_report(study, no_figures, monkeypatch):
    page = report_with(study, monkeypatch, {})
    assert "How many pages" not in page and "What was forgotten" not in page


@pytest.mark.parametrize("forgotten, said", [
    ({"comparison": cell(.5, -.1), "note": None}, "the preset&#39;s own test pages"), ({"comparison": None, "note": HOSTILE[0]}, "Not measured: &lt;script&gt;")])
def test_the_report_has_a_row_of_what_was_forgotten(study, no_figures, monkeypatch, forgotten, said):
    page = report_with(study, monkeypatch, {}, {"forgotten": forgotten})
    assert "What was forgotten" in page and said in page and "<script>alert" not in page
