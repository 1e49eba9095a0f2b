"A study with a single test page: scores without intervals, and a word why."
import json

import pandas as pd
import pytest

from docvlm import cli, evaluation
from docvlm.evaluation import compare, compare_groups
from docvlm.baselines.compare import system_cells


def answers(pages, scores):
    return pd.DataFrame({"question_id": list(map(str, range(len(pages)))), "doc_id": list(pages), "page": 1, "benchmark": "docvqa", "score": scores, "failure": None,
                         "prediction": "a", "answers": [["a"]]*len(pages)})


def test_means_are_told_without_interval():
    base, ours = answers("aa", [0., 1.]), [answers("aa", [1., 1.]), answers("aa", [.5, 1.])]
    assert compare(base, ours, [42, 43], 100) == {
        "metric": "anls", "questions": 2, "images": 1, "baseline": {"value": .5, "ci95": None},
        "ours": {"value": .875, "ci95": None, "per_seed": {"42": 1., "43": .75}}, "delta": {"value": .375, "ci95": None, "p_value": None}}
    assert compare(base, ours, [42, 43], 100, base.doc_id == "b") is None, "no questions, no cell"


def test_a_group_on_one_page_is_not_left_out():
    base, ours = answers("aabbc", [0., 0, 0, 0, 0]), [answers("aabbc", [1., 1, 1, 1, 1])]
    cells = compare_groups(base, ours, [42], 100, pd.Series(["x", "x", "x", "x", "y"]))
    assert cells["x"]["delta"]["ci95"] is not None and cells["y"]["delta"] == {"value": 1., "ci95": None, "p_value": None}


def test_another_system_on_one_page_has_its_row():
    cell = system_cells(answers("aa", [0., 1.]), [answers("aa", [1., 1.])], [42], 100)["docvqa"]
    assert (cell["value"], cell["ci95"], cell["delta"]) == (.5, None, {"value": .5, "ci95": None, "p_value": None})


@pytest.mark.parametrize("pages", ["aa", "ab"])
def test_the_command_prints_means_and_says_what_is_missing(tmp_path, monkeypatch, capsys, pages):
    (tmp_path/"adapter_model.safetensors").write_bytes(b"any")
    (tmp_path/"adapter_config.json").write_text("{}")
    monkeypatch.setattr(evaluation, "predict_systems",
                        lambda study, adapters: ({"base": answers(pages, [0., 1.])} | {name: answers(pages, [1., 1.]) for name in adapters}, {}))
    cli.evaluate(preset="smoke", adapter=str(tmp_path))
    out, told = capsys.readouterr()
    cell = json.loads(out)["docvqa"]
    assert cell["baseline"]["value"] == .5 and (cell["delta"]["ci95"] is None) is (pages == "aa")
    assert ("docvqa has one test document, so no interval" in told) is (pages == "aa")
