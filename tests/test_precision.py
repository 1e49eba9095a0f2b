"One precision a study: read off the machine, the same in every process, recorded by the first step, kept on other machines."
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from docvlm import core, files, model, presets as precision, presets, steps
from docvlm.apps.ask import Asker
from docvlm.engine.features import PageFeatures
from docvlm.engine.attention import autocast
from docvlm.model import load_base
from docvlm.training import _arguments

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def units(monkeypatch):
    "Sets which units the processor says it has."
    def set_units(*names):
        precision.has_bf16.cache_clear()
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda: dict.fromkeys(names, True))
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    yield set_units
    precision.has_bf16.cache_clear()


@pytest.mark.parametrize("names, has", [(("avx512_bf16",), True), (("amx_tile", "amx_bf16"), True), (("neon", "bf16"), True),
                                        (("avx512_f", "avx512_fp16", "amx_tile"), False), (("neon", "i8mm"), False), ((), False)])
def test_the_processor_says_whether_it_has_bf16(units, names, has):
    units(*names)
    assert precision.has_bf16("cpu") is has and autocast("cpu")._enabled is has


def test_no_clock_decides(units, monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: pytest.fail("a clock was asked"))
    units("avx512_bf16")
    assert precision.has_bf16("cpu")


def test_fresh_processes_agree():
    code = "from docvlm.core import open_study; print(open_study('smoke').preset.precision)"
    said = {subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert len(said) == 1 and said.pop().strip() in ("bf16", "fp32")


@pytest.mark.parametrize("begun, later", [("bf16", "fp32"), ("fp32", "bf16")])
def test_a_study_goes_on_in_the_precision_it_was_begun_in(repository, units, begun, later):
    def machine(kind): units(*(["avx512_bf16"] if kind == "bf16" else []))
    machine(begun)
    study = core.open_study("nano")
    assert study.preset.precision == begun and not study.run_dir.exists(), "looking decides nothing"
    result = study.step("data").run(lambda: {"n": 1})
    assert result["params"]["precision"] == begun
    machine(later)
    moved = core.open_study("nano")
    assert moved.preset.precision == begun and moved.step("data").state() == "fresh"
    shutil.rmtree(study.run_dir)  # a clone: results, and no run of its own
    assert core.open_study("nano").preset.precision == later
    assert core.open_study("nano").step("data").state() == "fresh", "results of another machine stay valid"


def test_the_presets_own_setting_comes_first(repository, units, monkeypatch):
    units("avx512_bf16")
    core.open_study("nano").step("data").run(lambda: {"n": 1})
    monkeypatch.setitem(presets.PRESETS, "nano", replace(presets.PRESETS["nano"], precision="fp32"))
    study = core.open_study("nano")
    assert study.preset.precision == "fp32" and "computed in bf16" in study.step("data").state()
    study.step("data").run(lambda: {"n": 1})
    monkeypatch.setitem(presets.PRESETS, "nano", replace(presets.PRESETS["nano"], precision="auto"))
    assert core.open_study("nano").preset.precision == "fp32", "what was set goes on"


@pytest.mark.parametrize("text, said", [('{"precision": "bf61"}', "choose one of"), ("{}", "choose one of"), ('{"prec', "delete it")])
def test_a_broken_record_is_named(repository, text, said):
    record = core.open_study("nano").run_dir/"precision.json"
    record.parent.mkdir(parents=True)
    record.write_text(text)
    with pytest.raises(files.StudyError, match=said): core.open_study("nano")


def test_an_unknown_precision_is_refused(repository, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "nano", replace(presets.PRESETS["nano"], precision="fp16"))
    with pytest.raises(files.StudyError, match="'fp16'.*choose one of: auto, bf16, fp32"): core.open_study("nano")


@pytest.mark.parametrize("chosen", ["bf16", "fp32"])
def test_every_part_computes_in_the_studys_precision(units, chosen, tmp_path):
    units("avx512_bf16")
    auto = core.open_study("smoke")
    study = replace(auto, preset=replace(auto.preset, precision=chosen))
    assert autocast("cpu", study.preset.precision)._enabled is (chosen == "bf16")
    assert _arguments(study, 1, tmp_path, 10, "none").bf16 is (chosen == "bf16")
    assert (PageFeatures(study).folder == PageFeatures(auto).folder) is (auto.preset.precision == chosen)
    seen = []
    base = load_base(study.preset)
    base.model.visual.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    rows = files.in_library("data.load_splits")(study)["test"].select([0])
    features = files.in_library("bench.throughput.FreshFeatures")(base, model.load_processor(study.preset), rows, study.preset.precision)
    features.get(next(iter(features.first)))
    assert seen == [chosen == "bf16"]


def test_emulated_bf16_is_said_and_not_asked_for(units, recwarn):
    study = core.open_study("smoke")
    study = replace(study, preset=replace(study.preset, precision="bf16"))
    units("avx2")
    with pytest.warns(UserWarning, match="emulates.*remove its folder in data/runs"): load_base(study.preset)
    recwarn.clear()
    asker = Asker(study)
    assert asker.precision == "fp32" and not [w for w in recwarn if "emulates" in str(w.message)]


def test_a_run_says_that_bf16_is_emulated(repository, units, monkeypatch, capsys):
    units("avx512_bf16")
    core.open_study("nano").step("data").run(lambda: {"n": 1})
    units("avx2")
    monkeypatch.setattr(steps, "run_step", lambda *step: None)
    steps.run_study(core.open_study("nano"))
    assert capsys.readouterr().out.count("This machine has no bf16 units") == 1
