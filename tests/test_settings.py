"Settings of your own: typed, refused in one line, named, recorded, and kept apart from the preset's results."
import inspect
import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import refusal

from docvlm import cli, core, files
from docvlm.core import checked_settings, open_study, with_settings
from docvlm.presets import ATTENTION_MODULES, BOUNDS, CHOICES, PRESETS, Preset, get_preset

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("change, message", [
    ("lora_rank=0", "lora_rank must be a whole number of at least 1"), ("lora_rank=-8", "not -8"), ("lora_rank=8.5", "not '8.5'"),
    ("lora_rank=", "not ''"), ("lora_rank=true", "not 'true'"), ("lora_rank=" + "9"*5000, "whole number"), ("lora_rank", "takes NAME=VALUE"),
    ("epochs=-1", "epochs must be a number"), ("epochs=0", "epochs"), ("epochs=inf", "not inf"), ("learning_rate=nan", "not nan"),
    ("learning_rate=1e-4x", "learning_rate must be"), ("learning_rate=0", "learning_rate"), ("lora_dropout=1", "lora_dropout"),
    ("seeds=", "seeds needs at least one"), ("seeds=42,42", "twice"), ("seeds=a,b", "not 'a'"), ("seeds=-1", "seeds must be"), ("seeds=4294967296", "seeds must be"),
    ("target_modules=qkv", "choose from: q_proj"), ("target_modules=", "at least one"), ("target_modules=q_proj,lm_head", "'lm_head'"),
    ("use_dora=maybe", "flag"), ("use_rslora=2", "flag"), ("ablation_precisions=int4", "choose from: int8, nf4"), ("ablation_variants=adalora", "rslora, dora, mlp"),
    ("precision=fp61", "choose from: auto, fp32, bf16, fp16, int8, nf4"), ("precision=fp16", "needs a GPU; on a CPU set precision=bf16 or fp32"), ("source=disk", "generated, hub"), ("base=data/none", "must be a folder of the repository"),
    ("base=", "must be a folder of the repository"), ("max_new_tokens=64", "give one as max_new_tokens.docvqa=VALUE"),
    ("max_new_tokens.docvqa=0", "max_new_tokens.docvqa must be"), ("max_new_tokens.vqa=3", "docvqa, infovqa, chartqa"), ("lora_rank.x=3", "has one value"),
    ("min_pixels=900000", "at most max_pixels"), ("train_pages.forms=0", "train_pages.forms must be"), ("max_test_questions=0", "max_test_questions must be"),
    ("protocol=lmms-eval", "comes with the preset's name, as in smoke@lmms-eval"), ("name=mine", "Unknown setting 'name'"),
    ("lora-rank=8", "did you mean lora_rank"), ("LEARNING_RATE=1", "did you mean learning_rate"), ("rank=8", "did you mean lora_rank"), ("lr=1", "Unknown setting 'lr'")])
def test_a_setting_that_does_not_fit_is_one_clear_line(capsys, change, message):
    assert message in refusal(capsys, cli.study, preset="smoke", set=[change])


def test_every_command_that_opens_a_study_takes_settings(capsys):
    for name, command in vars(cli).items():
        names = inspect.signature(command).parameters if inspect.isfunction(command) and hasattr(command, "__wrapped__") else {}
        if "documents" not in names: continue
        assert {"set", "config"} <= {*names}, name
        needed = {key: ["ocr"] if key == "questions" else "ocr" for key, one in names.items() if one.default is one.empty or key == "question"}
        assert "did you mean lora_rank" in refusal(capsys, command, **needed, preset="smoke", set=["lora_rnk=8"]), name


@pytest.mark.parametrize("text, message", [
    ("- lora_rank\n", "one a line"), ("lora_rank\n", "one a line"), ("a: [1\n", "is not a YAML file"), ("a: !!python/object/apply:os.system [ls]\n", "is not a YAML file"),
    ("lora_rank: 8\nlora_rank: 16\n", "gives lora_rank twice"), ("lora_rank: 0\n", "lora_rank must be"), ("lora_rank: [8]\n", "takes one value"),
    ("lora_rank: null\n", "not None"), ("seeds: {a: 1}\n", "seeds"), ("epochs: .nan\n", "not nan"), ("use_dora: {}\n", "one value"), ("5: 6\n", "Unknown setting '5'"),
    ("base: 2024-01-01\n", "must be text"), ("data_seed: 2024-01-01\n", "whole number"), ("max_new_tokens: {vqa: 1}\n", "docvqa, infovqa"), ("a: 1\n---\na: 2\n", "is not a YAML file"),
    ("x: &x [a, a]\ny: &y [*x, *x, *x, *x]\nseeds: [*y, *y, *y, *y]\n", "Unknown setting 'x'"), ("lora_rank: " + "["*3000, "is not a YAML file"),
    (b"\xff\xfe\x00", "is not a YAML file"), ("preset: nano\n", "Unknown setting 'preset'"), (None, "No such file")])
def test_a_config_file_that_does_not_fit_is_one_clear_line(capsys, tmp_path, text, message):
    file = tmp_path/"study.yaml"
    if text is not None: file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refusal(capsys, cli.study, preset="smoke", config=str(file))


def test_all_ways_give_the_same_study_and_set_wins_over_the_file(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("docvlm.steps.run_study", lambda study, only: opened.append(study))
    file = tmp_path/"study.yaml"
    file.write_text("\ufeffseeds: [1, 2]\nlearning_rate: 1e-4\nmax_new_tokens: {docvqa: 64}\nuse_dora: yes\nlora_rank: 64\n", encoding="utf-8")
    cli.study("smoke", config=str(file), set=["lora_rank=32"])
    cli.study("smoke", set=["lora_rank=32", "max_new_tokens.docvqa=64", "use_dora=on", "seeds=(1, 2)", "learning_rate=0.0001"])
    opened.append(open_study("smoke", settings={"lora_rank": 32, "max_new_tokens": {"docvqa": 64}, "use_dora": True, "seeds": [1, 2], "learning_rate": 1e-4}))
    opened.append(open_study(**json.loads(json.dumps(opened[0].given))))
    assert len({study.name for study in opened}) == 1 and all(study.preset == opened[0].preset for study in opened)
    preset = opened[0].preset
    assert (preset.lora_rank, preset.seeds, preset.learning_rate, preset.use_dora) == (32, (1, 2), 1e-4, True)
    assert preset.max_new_tokens == get_preset("smoke").max_new_tokens | {"docvqa": 64}


def another(preset, name):
    "A value for a setting, as text, that the preset does not have."
    value = getattr(preset, name)
    if name in CHOICES:
        mine = (value,) if isinstance(value, str) else value
        return next((choice for choice in CHOICES[name] if choice not in mine), CHOICES[name][0])
    if name in ("base", "revision"): return {"base": "data/nano/../nano", "revision": "a b/c:é"}[name]
    if name == "prompt_suffix": return "\nBe short, \"please\" & 'exact' = 5 % ü/.."
    if isinstance(value, bool): return "true"
    low, high = BOUNDS[name]
    return str(low if value != low and value != (low,) else high)


def test_every_field_is_a_setting_that_its_own_command_line_gives_again(monkeypatch):
    preset, names = get_preset("smoke"), set()
    for field in fields(Preset):
        if field.name in ("name", "protocol", "source"): continue
        dotted = f"{field.name}.{next(iter(getattr(preset, field.name)))}" if isinstance(getattr(preset, field.name), dict) else field.name
        text = another(preset, field.name)
        if field.name == "min_pixels": text = "785"
        study = open_study("smoke", settings={dotted: text})
        assert list(study.settings) == [dotted] and study.preset != preset
        assert re.fullmatch(r"[\w.-]+", study.name, re.ASCII) and len(study.name) < 100, study.name
        assert study.run_dir.resolve().parent == ROOT/"data"/"runs"
        given = shlex.split(study.command("docvlm-study"))[3:]
        again = open_study("smoke", settings=cli.named_values(given[1::2]))
        assert again.settings == study.settings and again.name == study.name and set(given[::2]) == {"--set"}
        names.add(study.name)
    assert len(names) == len(fields(Preset)) - 3


def test_names_differ_with_the_settings_and_not_with_their_order():
    named = lambda **settings: open_study("smoke", settings=settings).name
    assert named(lora_rank=8, epochs=2) == named(epochs="2.0", lora_rank="8") != named(lora_rank=8, epochs=3)
    assert named(seeds=[1, 23]) != named(seeds=[12, 3]) != named(seeds=[1, 2, 3])
    assert named(lora_rank=16) == named() == "smoke", "what the preset has is no setting"
    assert named(target_modules=list(reversed(ATTENTION_MODULES))) == "smoke", "the order of the modules says nothing"


def test_settings_and_documents_together(tmp_path):
    (tmp_path/"train").mkdir()
    (tmp_path/"train"/"metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "question": "?", "answers": ["9"*90]}))
    study, plain = open_study("smoke", str(tmp_path), {"lora_rank": 8}), open_study("smoke", str(tmp_path))
    assert study.name.startswith("smoke-test_settings_and_documents_") and "-lora_rank-8-" in study.name != plain.name and study.preset.max_new_tokens["docvqa"] == 91
    assert open_study("smoke", str(tmp_path), {"max_new_tokens.docvqa": 8}).preset.max_new_tokens["docvqa"] == 8


def test_results_stay_in_the_run_folder_and_say_their_settings(repository):
    study, plain = open_study("nano", settings={"lora_rank": 8}), open_study("nano")
    for folder in (study.results_dir, study.figures_dir, study.paper_dir): assert folder.is_relative_to(study.run_dir)
    assert study.step("data").key() != plain.step("data").key()
    study.step("data").run(lambda: {"n": 1})
    found = files.read_json(study.step("data").path)
    assert found["settings"] == {"lora_rank": 8} and found["params"]["lora_rank"] == 8 and found["preset"] == "nano"
    assert study.result("data")["n"] == 1 and plain.step("data").state() == "no result yet"
    assert not (repository/"data"/"results").exists()
    with pytest.raises(files.StudyError, match="run `docvlm-study --preset nano --set lora_rank=8`"): study.result("training")


def test_a_precision_that_is_set_is_kept(repository):
    for precision in ("fp32", "bf16"):
        study = open_study("nano", settings={"precision": precision})
        study.step("data").run(lambda: {"n": 1})
        assert open_study("nano", settings={"precision": precision}).step("data").state() == "fresh"
        assert files.read_json(study.run_dir/"precision.json") == {"precision": precision}
    assert open_study("nano", settings={"precision": "auto"}).name == "nano"


def test_a_study_that_leaves_its_protocol_says_so():
    for preset in PRESETS.values():
        assert with_settings(preset, checked_settings(preset, {"max_new_tokens.docvqa": 7})).protocol == f"{preset.protocol} with its own max_new_tokens"
        assert with_settings(preset, checked_settings(preset, {"lora_rank": 7})).protocol == preset.protocol


def test_the_command_line_passes_settings_through(tmp_path):
    (tmp_path/"my.yaml").write_text("epochs: -1\n")
    for options, message in ((["--config", "my.yaml"], "epochs must be"), (["--config", "my.yaml", "--set", "epochs=2", "--set=lora_rank=0"], "lora_rank must be"),
                             (["--set", "epochs=2", "--set", "epochs=3"], "--set gives epochs twice")):
        done = subprocess.run([Path(sys.executable).parent/"docvlm-study", "--preset", "smoke", *options], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith("docvlm: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_a_setting_is_checked_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(core, "in_precision", lambda study: pytest.fail("the study was opened"))
    assert "lora_rank must be" in refusal(capsys, cli.train, preset="smoke", set=["lora_rank=0"])
