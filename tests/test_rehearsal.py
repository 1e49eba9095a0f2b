"The rehearsal of the 2B from the command to the report, with two layers of its exact widths, vocabulary and file layout."
import json
import shutil
from unittest.mock import patch

import pytest
from schema import schema_errors
from test_cards import MEMORY, budget
from test_report import fill, html_of, no_figures, study  # noqa: F401, fixtures among them

from docvlm import cli, model
from docvlm.bench import plan, rehearsal
from docvlm.bench.rehearsal import rehearsal_of, rehearsal_parts, run_parts
from docvlm.core import Study, open_study
from docvlm.files import read_json, write_json
from docvlm.model import byte_ranks, qwen2_vl_2b_config
from docvlm.files import results_schema
from docvlm.presets import PRESETS
from docvlm.steps import content_digest

TINY = ["min_steps=6", "max_test_questions=4", "latency_pages=1", f"max_pixels={16*28*28}", "tokens_per_batch=256", "tokens_per_page=256"]
ROOMY = {"no_gpu": "", "gpu_bytes": 80e9, "memory_bytes": 64e9, "disk_bytes": 1e12}


def synthetic_rehearsal():
    "A result of the shape that `write_rehearsal` writes."
    row = {"ms": 30., "modelled_ms": 2., "ratio": 15., "peak_memory_bytes": 2**30, "kind": "measured"}
    ways = (("training", "plain"), ("training", "fast"), ("evaluation", "loop"), ("evaluation", "batched"), ("evaluation", "fast"))
    return {"step": "rehearsal", "preset": "qwen2-vl-2b", "settings": {}, "weights": "random", "layers": None, "parameters": 2_208_985_600,
            "tokenizer": "Qwen2's", "device": "NVIDIA H100 80GB HBM3", "precision": "bf16",
            "machine": {"name": "NVIDIA H100 80GB HBM3", "dtype": "bf16", "flops_per_s": 989e12, "bytes_per_s": 3e12, "kernel_s": 0.},
            "questions": [{"part": part, "way": way, **row} for part, way in ways], "load_s": 9., "loaded_bytes": 5*10**9, "pages_per_s": 30.,
            "training": {"steps": 30, "pages_per_step": 8., "tokens_per_page": 940., "tokens_at_once": 8192, "checkpointing": False,
                         "peak_memory_bytes": 2**35, "step_s": .3, "questions_per_step": 32., "questions_per_s": 100., "flop_per_s": 2e14,
                         "stopped_at_step": 5, "resumed": True, "adapter_bytes": 8_700_000, "matmul_flop_per_s": 8e14, "share": .25, "plain_batch_size": 8},
            "memory": {"planned_bytes": 2**35, "measured_bytes": 2**35, "ratio": 1.},
            "answers_equal": {"questions": 64, "questions_fp32": 8, "loop": 60, "batched": 60, "loop_fp32": 8, "batched_fp32": 8},
            "latency": [{"device": "NVIDIA H100 80GB HBM3", "precision": "bf16", "batch_size": 1, "image_tokens": 743., "ttft_ms": {"p50": 30., "p95": 40.},
                         "latency_ms": {"p50": 90., "p95": 99.}, "images_per_s": 11., "peak_memory_bytes": 2**33, "kind": "measured",
                         "cost_per_1000_images_usd": .1, "price_source": "3.78 USD/h"}],
            "notes": ["int8 does not run here"], "parts_s": {"prepare": 60.}, "wall_s": 60., "started": "2026-11-28T18:00:00+00:00"}


def narrow_config(preset):
    "The 2B's architecture, vocabulary and positions, six times narrower, so that two layers are rehearsed within a CI run."
    config = qwen2_vl_2b_config()
    for name, value in {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2}.items(): setattr(config.text_config, name, value)
    for name, value in {"embed_dim": 160, "num_heads": 2, "hidden_size": 256}.items(): setattr(config.vision_config, name, value)
    return config


@pytest.mark.parametrize("widths", ["narrow", pytest.param("exact", marks=pytest.mark.slow)])
def test_two_layers_are_rehearsed_by_the_command_and_not_again(widths, capsys, monkeypatch):
    if widths == "narrow":
        with patch("importlib.util.find_spec", lambda name: None): ranks = byte_ranks()  # quick to load: without merges
        monkeypatch.setattr(model, "byte_ranks", lambda: ranks)
        monkeypatch.setattr(rehearsal, "base_config", narrow_config)
    monkeypatch.setattr(rehearsal, "BATCH_SIZE", 2)
    settings = dict(pair.split("=") for pair in TINY)
    run = rehearsal_of(open_study("qwen2-vl-2b", settings=settings), 2)
    shutil.rmtree(run.folder, ignore_errors=True)
    try:
        cli.rehearse("qwen2-vl-2b", layers=2, set=TINY)
        said, found = capsys.readouterr().out, read_json(run.folder/"rehearsal.json")
        assert "[1/8] prepare" in said and "min left" in said and "training, plain:" in said and "rehearsal.json" in said
        assert found["layers"] == 2 and found["weights"] == "random" and found["parameters"] < 500e6
        assert {(row["part"], row["way"]) for row in found["questions"]} == {
            ("training", "plain"), ("training", "fast"), ("evaluation", "loop"), ("evaluation", "batched"), ("evaluation", "fast")}
        assert all(row["ms"] > 0 and row["ratio"] > 0 and row["kind"] == "measured" for row in found["questions"])
        assert found["training"]["stopped_at_step"] == 5 and found["training"]["steps"] == 6 and found["training"]["resumed"]
        assert found["answers_equal"]["loop_fp32"] == found["answers_equal"]["batched_fp32"] == found["answers_equal"]["questions_fp32"] == 4
        assert found["latency"] and found["memory"]["planned_bytes"] > 0 and found["memory"]["ratio"] is None
        assert found["content"] == content_digest(found) and schema_errors(found, "rehearsal.json", results_schema(), set()) == []
        assert not (run.folder/"base").exists(), "gigabytes of random weights are not left behind"
        for name in rehearsal_parts(run, None): assert (run.folder/"parts"/f"{name}.json").exists()
        cli.rehearse("qwen2-vl-2b", layers=2, set=TINY)
        assert "[3/8] training: was done" in capsys.readouterr().out and not (run.folder/"base").exists()
    finally: shutil.rmtree(run.folder, ignore_errors=True)


def test_a_part_that_stops_is_begun_again_and_those_before_it_are_not(tmp_path, capsys):
    def stops(): raise KeyboardInterrupt
    first = {"prepare": lambda: {"expected_s": {"features": 50, "training": 70}}, "features": lambda: {"n": 1}}
    with pytest.raises(KeyboardInterrupt): run_parts(first | {"training": stops}, tmp_path, "key")
    done = run_parts({"prepare": stops, "features": stops, "training": lambda: {"n": 2}}, tmp_path, "key")
    assert done["training"]["n"] == 2 and done["features"]["n"] == 1
    with pytest.raises(KeyboardInterrupt): run_parts({"prepare": stops}, tmp_path, "another key")
    assert "features: was done" in capsys.readouterr().out


@pytest.mark.parametrize("changes, layers, said", [
    ({"no_gpu": "The NVIDIA driver on your system is too old (found version 11040)"}, 0, "too old (found version 11040)). To try it on a CPU, add --layers 2"),
    ({"no_gpu": "Torch not compiled with CUDA enabled"}, 0, "needs a GPU for 4.4 GB of weights"),
    ({"gpu_bytes": 1e9}, 0, "take a larger GPU"),
    ({"memory_bytes": 2e9}, 0, "of memory, and 2.0 GB are free"), ({"memory_bytes": 2e9, "no_gpu": "none"}, 2, "of memory, and 2.0 GB are free"),
    ({"disk_bytes": 1e8}, 0, "of disk, and 0.1 GB are free"), ({"disk_bytes": 1e8, "no_gpu": "none"}, 2, "link data/runs to a larger disk")])
def test_a_box_that_cannot_is_refused_in_one_line_before_anything_is_written(changes, layers, said, monkeypatch):
    big = open_study("qwen2-vl-2b")
    monkeypatch.setattr(rehearsal, "this_box", lambda run: ROOMY | changes)
    monkeypatch.setattr(plan, "budget_of", lambda *_: budget())  # both take minutes to count
    monkeypatch.setattr(plan, "training_memory", lambda *_: MEMORY)
    monkeypatch.setattr(rehearsal, "run_parts", lambda *args: pytest.fail("a part was begun"))
    with pytest.raises(rehearsal.StudyError) as error: rehearsal.write_rehearsal(big, layers)
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1
    assert not rehearsal_of(big, layers).folder.exists()


def test_torch_s_own_message_about_the_gpu_becomes_one_line(monkeypatch):
    def fails(): raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check that you have one.\n")
    monkeypatch.setattr(rehearsal.torch.cuda, "init", fails)
    found = rehearsal.this_box(rehearsal_of(open_study("qwen2-vl-2b")))
    assert found["no_gpu"] == "Found no NVIDIA driver on your system. Please check that you have one" and found["memory_bytes"] > 0 < found["disk_bytes"]


def test_the_report_shows_a_rehearsal_and_says_so_if_there_is_none(study, no_figures):  # noqa: F811
    fill(study)
    plan = {"preset": "qwen2-vl-2b", "params": {"base": "B"}, "total_parameters": 1, "training_tokens": 1, "training_flops": 1., "disk_bytes": 1,
            "page_cache_bytes": 1, "lora": [], "visual_tokens": [], "modelled": [], "check": None}
    folder = Study(PRESETS["qwen2-vl-2b"]).results_dir
    write_json(folder/"plan.json", plan | {"content": content_digest(plan)})
    assert "with random weights: not measured" in html_of(study)
    before, found = study.step("report").key(), json.loads(json.dumps(synthetic_rehearsal()))
    write_json(folder/"rehearsal.json", found | {"content": content_digest(found)})
    assert study.step("report").key() != before, "the report must be made again"
    page = html_of(study)
    assert "measured with random weights: speed and memory do not depend on them; answers do" in page and "generate, one by one" in page
    write_json(folder/"rehearsal.json", found | {"content": "edited"})
    with pytest.raises(rehearsal.StudyError, match="run docvlm-rehearse again"): html_of(study)
