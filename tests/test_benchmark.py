"The benchmark from the command to the report."
import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_report import fill, html_of, no_figures, study  # noqa: F401, fixtures among them

from docvlm.core import open_study
from docvlm.files import read_json, root

ROOT = Path(__file__).resolve().parent.parent
WAYS = ("training_vs_plain", "training_vs_grouped", "evaluation_vs_loop", "evaluation_vs_batched")


@pytest.mark.slow
def test_the_command_measures_what_the_contract_names():
    path = open_study("smoke").step("benchmark").path
    path.unlink(missing_ok=True)
    done = subprocess.run([sys.executable, "-c", "from docvlm.cli import bench; bench()", "--preset", "smoke"], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0 and "training_vs_plain:" in done.stdout, done.stderr[-3000:]
    result = read_json(path)
    for way in WAYS: assert 0 < result[way]["min"] <= result[way]["median"] <= result[way]["max"] and result["with_first_fill"][way] > 0
    assert result["equivalence"]["answers_equal"] == result["equivalence"]["answers"] > 0
    assert {(s["part"], s["switch"]) for s in result["switches"]} >= {
        ("training", "page cache"), ("training", "shared pages"), ("training", "answer-only logits"),
        ("evaluation", "page cache"), ("evaluation", "shared pages"), ("evaluation", "pages in flight"), ("vision", "equal grids")}
    assert [row["pages"] for row in result["growth"]["by_pages"]] == [1, 2, 4, 8]
    assert [row["questions"] for row in result["growth"]["by_questions"]] == [1, 2, 4, 8]
    predict = result["predict"]
    assert predict["answers_equal"] == predict["sample_questions"] == 50 and predict["vs_loop"]["median"] > 1 and "predict_vs_loop:" in done.stdout
    assert [row["questions"] for row in predict["memory"]] == [25, 250] and predict["memory_ratio"] > 0
    assert 0 < result["machine"]["share"] < 1 and set(result["machine"]["matmul_flop_per_s"]) == {"fp32", "bf16"}
    assert {row["kind"] for row in result["modelled"]} == {"modelled"} and len({row["device"] for row in result["modelled"]}) == 3
    assert result["key"] and set(result["code"]) == {"git_sha", "dirty", "notebook_sha256", "library_sha256"} and str(ROOT) not in json.dumps(result)
    assert open_study("smoke").step("benchmark").state() == "fresh"


def synthetic_benchmark():
    around = lambda value: {"median": value, "min": .9*value, "max": 1.1*value}
    point = lambda pages, questions: {"pages": pages, "questions": questions, "seconds": questions/20, "peak_memory_bytes": 2**30}
    return {**{way: around(3.2 + n) for n, way in enumerate(WAYS)}, "with_first_fill": dict.fromkeys(WAYS, 2.4),
            "switches": [{"part": "training", "switch": "page cache", "speedup": around(2)}],
            "rates": {"training": {"ours": around(50)}, "evaluation": {"ours": around(90)}},
            "equivalence": {"answers": 101, "answers_equal": 101, "answers_equal_with_bf16_cache": 97}, "machine": {"precision": "fp32", "share": .413},
            "growth": {"by_pages": [point(k, 4*k) for k in (1, 2, 4, 8)], "by_questions": [point(1, k) for k in (1, 2, 4, 8)]},
            "predict": {"pages": 200, "fields": 5, "sample_questions": 50, "rounds": 3, "answers_equal": 50, "vs_loop": around(6.3), "memory_ratio": 1.02,
                        "rates": {"ours": around(50), "loop": around(8)},
                        "memory": [{"pages": n, "questions": 5*n, "seconds": n/10, "peak_memory_bytes": 2**30} for n in (100, 1000)]},
            "documents": {"pages": 8, "questions": 24, "rounds": 3, "answers_equal": 24, "vs_loop": around(7.5), "with_first_fill": 5.5,
                          "rates": {"ours": around(30), "loop": around(4)}},
            "setup": {"rounds": 5}, "modelled": [{"device": "A100", "part": "training", "way": "plain", "tokens": 803., "flops": 5e12,
                                                  "least_ms": 16., "speedup": 2.9}]}


def test_the_report_shows_a_benchmark_only_if_there_is_one(study, no_figures):  # noqa: F811
    fill(study)
    assert "One page, many questions" not in html_of(study)
    (root() / "nbs/bench/02_speedup.ipynb").write_text(json.dumps({"cells": []}))
    before = study.step("report").key()
    study.step("benchmark").run(synthetic_benchmark)
    assert study.step("report").key() != before, "the report must be made again"
    page = html_of(study)
    assert "One page, many questions" in page and "101 of 101 answers" in page and "41.3 %" in page and "2.9 to 3.5" in page
    assert "docvlm-predict, one question at a time" in page and "5.7 to 6.9" in page
    assert "documents of 8 pages, one question at a time" in page and "6.8 to 8.2" in page and "5.5" in page
    assert "Modelled, not measured" in page and "are out of date (" not in page
    (root() / "nbs/bench/02_speedup.ipynb").write_text(json.dumps({"cells": [{"cell_type": "code", "metadata": {}, "source": "1 + 1"}]}))
    assert "are out of date (inputs, code or parameters have changed)" in html_of(study), "a result of changed code says so"
