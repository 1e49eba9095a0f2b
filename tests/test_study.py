"The smoke study from end to end through papermill: runs, is up to date, notices changes, refuses what it should."
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from schema import schema_errors

from docvlm import steps
from docvlm.apps.ask import Asker
from docvlm.files import StudyError, read_json, results_schema, root, write_json
from docvlm.core import open_study
from docvlm.analysis.metrics import score
from docvlm.provenance import copy_sources
from docvlm.presets import TOKEN_PX
from docvlm.steps import STEPS, study_lock, run_study

BIN = Path(sys.executable).parent
LESS_WORK = {"max_pixels": 200*TOKEN_PX**2, "latency_repeats": 1, "curve_fractions": (1/2,), "ablation_variants": ()} | {
    f"{split}_pages.{kind}": 1 for split in ("train", "test") for kind in ("receipts", "letters", "line", "pie")}


@pytest.fixture(scope="module", autouse=True)
def study(tmp_path_factory):
    "The smoke study with less work, run in a copy of the repository, in which all tests of this file stand."
    opened, here = open_study("smoke", settings=LESS_WORK), Path.cwd()
    os.chdir(copy_sources(opened, tmp_path_factory.mktemp("clone")))
    root.cache_clear()
    done = command(opened, "docvlm-study")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    yield opened
    os.chdir(here)
    root.cache_clear()


def command(study, name, *arguments):
    "Run a docvlm command on the study."
    return subprocess.run([*shlex.split(study.command(str(BIN/name))), *arguments], capture_output=True, text=True)


def test_every_step_has_a_result_with_its_origin(study):
    for name in STEPS:
        result = study.result(name)
        assert result["preset"] == "smoke" and result["key"] and result["wall_s"] > 0
        assert set(result["code"]) == {"git_sha", "dirty", "notebook_sha256", "library_sha256"}
        assert {"python", "torch", "transformers", "peft", "cpu", "gpu"} <= set(result["env"])
        assert str(root()) not in json.dumps(result), f"{name} holds a machine path"


def test_every_field_of_a_result_is_in_the_results_schema(study):
    schema = results_schema()
    for path in study.results_dir.glob("*.json"):
        assert not schema_errors(json.loads(path.read_text(encoding="utf-8")), path.name, schema, set())


def test_results_are_consistent(study):
    evaluation = study.result("evaluation")
    assert set(evaluation["benchmarks"]) == {"docvqa", "chartqa", "infovqa", "mpdocvqa"}
    for cell in evaluation["benchmarks"].values():
        low, high = cell["delta"]["ci95"]
        assert low <= cell["delta"]["value"] <= high and 0 <= cell["delta"]["p_value"] <= 1
        assert abs(cell["ours"]["value"] - cell["baseline"]["value"] - cell["delta"]["value"]) < 1e-9
        assert set(cell["ours"]["per_seed"]) == {str(s) for s in study.preset.seeds}
    training = study.result("training")
    assert training["model"]["vision_trainable_parameters"] == 0 and 0 < training["model"]["trainable_percent"] < 100
    ablation = study.result("ablation")
    assert [row["lora_rank"] for row in ablation["rows"]] == list(study.preset.ablation_ranks)
    assert [(row["precision"], row["evaluated_on"]) for row in ablation["quantized"]] == [
        (trained, used) for trained in study.preset.ablation_precisions for used in (trained, study.preset.precision)]
    curve = ablation["learning_curve"]
    assert [point["documents"] for point in curve] == [0, 8, 17] and curve[1]["train_s"] > 0
    first = evaluation["benchmarks"]["docvqa"]["ours"]["per_seed"][str(study.preset.seeds[0])]
    assert curve[-1]["docvqa"]["value"] == pytest.approx(first), "the last point is the study's own adapter"
    assert curve[0]["docvqa"]["value"] == pytest.approx(evaluation["benchmarks"]["docvqa"]["baseline"]["value"])
    pages = study.result("data")["splits"]["train"]["pages"]
    assert re.match(rf"Twice the {pages} training pages would (change the score|bring no clear change) on ", ablation["pages_answer"])
    assert "lora-r16-seed42-8-documents" in {Path(path).name for path in ablation["artefacts"]}
    assert "forgotten" not in evaluation, "only a user's documents can have others forgotten"
    assert all(row["latency_ms"]["p50"] >= row["ttft_ms"]["p50"]*0.5 > 0 for row in study.result("latency")["rows"])
    data = study.result("data")
    assert set(data["leakage"]) >= {"exact", "near", "question"} and data["splits"]["test"]["questions"] > 0
    for share in ("before", "after"):
        total = sum(t[share]["share"] for t in study.result("failures")["types"])
        assert total == pytest.approx(1) or total == pytest.approx(1 - study.result("failures")["correct"][share])


def test_published_scores_can_be_recomputed_from_the_predictions(study):
    frame = pq.read_table(study.run_dir/"predictions"/"base.parquet").to_pandas()
    assert frame.question_id.is_unique
    again = [score(*row) for row in zip(frame.benchmark, frame.prediction, frame.answers)]
    assert again == frame.score.tolist()
    for name, cell in study.result("evaluation")["benchmarks"].items():
        assert frame.score[frame.benchmark == name].mean() == pytest.approx(cell["baseline"]["value"])


def test_report_is_there(study):
    page = (study.paper_dir/"paper.html").read_text(encoding="utf-8")
    assert "<script src" not in page and "http-equiv=\"refresh\"" not in page and len(page) > 10_000
    assert (study.paper_dir/"paper.pdf").read_bytes().startswith(b"%PDF")


def test_second_run_does_nothing_and_a_hand_edit_is_noticed(study):
    assert run_study(study) == []
    path = study.results_dir/"data.json"
    kept = read_json(path)
    try:
        write_json(path, kept | {"splits": {}})
        with pytest.raises(StudyError, match="changed"): study.result("training")
    finally: write_json(path, kept)
    assert study.step("training").state() == "fresh"
    predictions = study.run_dir/"predictions"/"base.parquet"
    predictions.rename(moved := predictions.with_suffix(".moved"))
    assert "base.parquet is missing" in study.step("evaluation").state()
    moved.rename(predictions)


def test_changed_predictions_are_noticed(study):
    path = study.run_dir/"predictions"/"base.parquet"
    kept = path.read_bytes()
    path.write_bytes(kept + b"0")
    assert "base.parquet has been changed" in study.step("evaluation").state()
    path.write_bytes(kept)
    assert study.step("evaluation").state() == "fresh"


def test_an_edited_adapter_is_another_and_leaves_the_studys_answers(study):
    config = study.run_dir/"adapters"/"lora-r16-seed42"/"adapter_config.json"
    kept = config.read_text()
    predictions = lambda: {file.stem: file.read_bytes() for file in (study.run_dir/"predictions").glob("*.parquet")}
    before = predictions()
    config.write_text(kept.replace('"lora_alpha": 32', '"lora_alpha": 640'))
    try: done = command(study, "docvlm-evaluate")
    finally: config.write_text(kept)
    assert done.returncode == 0 and json.loads(done.stdout), done.stderr[-2000:]
    assert study.step("evaluation").state() == "fresh"
    after = predictions()
    assert {name: after[name] for name in before} == before
    new, = after.keys() - before.keys()
    assert new.startswith("lora-r16-seed42-"), "its answers lie under a name of their own"


def test_two_studies_do_not_share_a_folder(study):
    with study_lock(study):
        with pytest.raises(StudyError, match="Another run"): run_study(study)


def test_a_failing_cell_is_named_and_earlier_results_stay(study, monkeypatch, tmp_path):
    import nbformat
    broken = nbformat.read(root()/"nbs"/"08_latency.ipynb", 4)
    broken.cells = [c for c in broken.cells if "parameters" in c.metadata.get("tags", [])] + [nbformat.v4.new_code_cell("1/0")]
    nbformat.write(broken, name := root()/"nbs"/"_broken.ipynb")
    try:
        monkeypatch.setitem(steps.STEPS, "broken", ("_broken", (), ()))
        with pytest.raises(StudyError, match=r"_broken.ipynb failed in cell \d+: ZeroDivisionError") as failure: run_study(study, "broken")
        assert "run the same command to go on" in str(failure.value)
    finally: name.unlink()
    assert study.step("latency").state() == "fresh"


@pytest.mark.parametrize("arguments, message", [
    (["--preset", "2b"], "choose one of: smoke, nano"),
    (["--preset", "smoke", "--documents", "no/such/folder"], "metadata.jsonl"),
    (["--preset", "smoke", "--only", "everything"], "choose one of: data, training")])
def test_mistakes_get_one_clear_line(arguments, message):
    done = subprocess.run([BIN/"docvlm-study", *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_ask_answers_with_base_and_adapter(study):
    page = next((study.cache_dir/"data").glob("*/pages/*.png"))
    done = command(study, "docvlm-ask", page, "What is the total?")
    assert done.returncode == 0 and "base:" in done.stdout and "LoRA:" in done.stdout, done.stderr


def test_the_readmes_python_answers_as_docvlm_does(study, tmp_path):
    page = next((study.cache_dir/"data").glob("*/pages/*.png"))
    code = re.search(r"```python\n(from peft.*?)```", (root()/"README.md").read_text(encoding="utf-8"), re.S)[1]
    for printed, here in (("data/runs/nano", f"data/runs/{study.name}"), ("page.png", str(page))):
        assert printed in code
        code = code.replace(printed, here)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-2000:]
    fp32 = replace(study, preset=replace(study.preset, precision="fp32"))
    answers = {row["system"]: row["answer"] for row in Asker(fp32).ask([Image.open(page)], ["What is the total?"])}
    assert said.stdout.strip() == answers["LoRA"]
