"Which precision and which training step a card gets, with the card's answers made up; and what a wrong card is told."
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from docvlm import cli, core, presets, steps, training
from docvlm.apps.ask import quick_precision
from docvlm.bench import cost, plan
from docvlm.bench.plan import Budget, Memory, Setting, check_machine, fitting_setting, lora_rows, training_memory, training_setting
from docvlm.engine.attention import autocast
from docvlm.files import StudyError, digest_of
from docvlm.model import load_base
from docvlm.presets import check_precision, computes_in, get_preset, has_units, shown_precision
from docvlm.training import _arguments

BIG = get_preset("qwen2-vl-2b")
MEMORY = Memory(fixed_bytes=4_700_000_000, token_bytes=2_870_000., token_bytes_recomputed=240_000., longest_page=4096)  # of the 2B in 16 bits


def budget(memory=MEMORY):
    return Budget(total_parameters=2_208_985_600, lora=[], training_tokens=26_338_306, training_flops=1., feature_flops=1., page_cache_bytes=0,
                  disk_bytes=0, typical_page=800, memory=memory, step=None, recomputed_step=None, page=None)


@pytest.fixture
def card(monkeypatch):
    "Makes up a GPU: name, compute capability, free and total memory in GB."
    def set_card(name="Tesla T4", capability=(7, 5), free=15.5, total=16):
        presets.has_bf16.cache_clear()
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: name)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: capability)
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda *_: (int(free*1e9), int(total*1e9)))
    monkeypatch.setattr(plan, "training_memory", lambda preset, *given: replace(MEMORY, fixed_bytes={
        "int8": 3_400_000_000, "nf4": 2_800_000_000, "fp32": 9_100_000_000}.get(preset.precision, MEMORY.fixed_bytes)))
    monkeypatch.setattr(plan, "lora_rows", lambda preset: [])
    yield set_card
    presets.has_bf16.cache_clear()


@pytest.mark.parametrize("name, capability, used", [("Tesla T4", (7, 5), "fp16"), ("Tesla V100", (7, 0), "fp16"), ("Tesla P100", (6, 0), "fp16"),
                                                    ("NVIDIA L4", (8, 9), "bf16"), ("NVIDIA A100", (8, 0), "bf16"), ("NVIDIA H100", (9, 0), "bf16")])
def test_the_card_decides_between_bf16_and_fp16(card, repository, name, capability, used):
    card(name, capability)
    assert core.open_study("nano").preset.precision == used
    assert {computes_in(quantized, "cuda") for quantized in ("nf4", "int8", "auto")} == {used}
    study = core.open_study("nano", settings={"precision": "nf4"})
    assert study.preset.precision == "nf4" and "nf4" in study.name and shown_precision("nf4", "cuda") == f"nf4 weights, {used} autocast"
    assert study.step("data").run(lambda: {"n": 1})["params"]["precision"] == "nf4", "recorded"


def test_fp16_trains_with_loss_scaling_and_bf16_without(card, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(training, "TrainingArguments", lambda **given: made.append(given) or SimpleNamespace(n_gpu=1))
    study = core.open_study("smoke")
    for capability, precision in (((7, 5), "fp16"), ((8, 0), "bf16"), ((7, 5), "nf4"), ((8, 0), "int8"), ((8, 0), "fp32")):
        card(capability=capability)
        _arguments(replace(study, preset=replace(study.preset, precision=precision)), 1, tmp_path, 10, "none")
    assert [(given["fp16"], given["bf16"]) for given in made] == [(True, False), (False, True), (True, False), (False, True), (False, False)]


def test_bf16_on_a_card_without_it_is_refused_before_anything_is_loaded(card, repository, monkeypatch):
    card()
    study = core.open_study("nano", settings={"precision": "bf16"})
    told = r"Tesla T4 \(compute capability 7.5\) has no bf16; set precision=fp16, nf4 or int8"
    for attempt in (lambda: check_precision("bf16", "cuda"), lambda: steps.run_study(study), lambda: load_base(study.preset),
                    lambda: check_machine(replace(study, preset=replace(BIG, precision="bf16")), budget())):
        with pytest.raises(StudyError, match=told): attempt()
    assert quick_precision(study) == "fp16", "asking about a page goes on in what the card has"


def test_fp16_is_for_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    study = core.open_study("smoke", settings={"precision": "fp16"})
    for attempt in (lambda: check_precision("fp16", "cpu"), lambda: load_base(study.preset)):
        with pytest.raises(StudyError, match="precision=fp16 needs a GPU; on a CPU set precision=bf16 or fp32"): attempt()
    assert quick_precision(study) == computes_in("auto", "cpu") and has_units("nf4", "cpu") and not has_units("fp16", "cpu")


@pytest.mark.parametrize("cuda, said, told", [
    ("13.0", RuntimeError("Found no NVIDIA driver on your system. Please check"), "torch finds no NVIDIA driver; if there is a card, install one for CUDA 13.0"),
    ("13.0", RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."), r"driver is too old; install one that supports CUDA 13.0 \(see nvidia-smi\)"),
    ("13.0", RuntimeError("No CUDA GPUs are available"), r"torch finds none \(No CUDA GPUs are available\); check nvidia-smi and CUDA_VISIBLE_DEVICES"),
    (None, AssertionError("Torch not compiled with CUDA enabled"), r"this torch \(9.1.0\+cpu\) is built without CUDA; .*`pip install --force-reinstall torch==9.1.0`")])
def test_no_gpu_an_old_driver_and_a_torch_without_cuda_are_told_apart(monkeypatch, cuda, said, told):
    def init(): raise said
    for name, value in (("is_available", lambda: False), ("init", init)): monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch, "__version__", "9.1.0+cpu")
    with pytest.raises(StudyError, match=f"needs a GPU, and .*{told}, or use --preset nano") as raised:
        check_machine(replace(core.open_study("smoke"), preset=BIG), budget())
    assert "CUDA None" not in str(raised.value)


@pytest.mark.parametrize("free, total, told", [
    (9, 24, "needs about 16.5 GB of GPU memory, and other processes use 15.0 GB of this GPU's 24.0 GB; end them"),
    (1, 16, "other processes use 15.0 GB of this GPU's 16.0 GB; end them.*CUDA_VISIBLE_DEVICES"),
    (5.5, 5.5, "needs a GPU with 6.3 GB of memory.*this one has 5.5 GB; --set tokens_per_page=2048|--set precision=int8 fits"),
    (3, 3, "this one has 3.0 GB; take a larger GPU")])
def test_memory_that_is_in_use_or_lacking_is_said_before_loading(card, free, total, told):
    card("NVIDIA L4", (8, 9), free, total)
    with pytest.raises(StudyError, match=told): check_machine(replace(core.open_study("smoke"), preset=BIG), budget())


def test_a_16_gb_card_runs_the_2b(card, monkeypatch):
    card()
    study = replace(core.open_study("smoke"), preset=replace(BIG, precision="fp16"))
    assert check_machine(study, budget(), free_bytes=10**15) is None
    assert training_setting(study) == Setting(BIG.tokens_per_batch, True) == fitting_setting(MEMORY, BIG, 16e9)
    card("NVIDIA L4", (8, 9), 23, 24)
    assert training_setting(study) == Setting(MEMORY.longest_page, False)
    monkeypatch.setattr(plan, "team", lambda: SimpleNamespace(num_processes=4))
    assert training_setting(study) == Setting(MEMORY.longest_page, False), "a share of a batch is never split"
    assert training_setting(replace(study, preset=replace(study.preset, tokens_per_batch=65536))) == Setting(16384, True)


COUNTED = {}  # what takes seconds to count


def counted_once(count):
    "The function, which counts for each preset and the same arguments only once in a run of the tests."
    def found(preset, *given, **more):
        key = digest_of(count.__name__, asdict(preset), given, more)
        if key not in COUNTED: COUNTED[key] = count(preset, *given, **more)
        return COUNTED[key]
    return found


@pytest.fixture
def counted(card, monkeypatch):
    "The made-up GPU, with the memory counted from the model."
    monkeypatch.setattr(plan, "training_memory", training_memory)
    monkeypatch.setattr(plan, "lora_rows", lambda preset: counted_once(lora_rows)(replace(preset, ablation_ranks=(16,))))
    for count in (cost.training_cost, cost.page_cost, cost.weight_bytes): monkeypatch.setattr(plan, count.__name__, counted_once(count))
    return card


def check_with(monkeypatch, study, processes, fsdp):
    "`check_machine` in one of a team of processes."
    monkeypatch.setattr(plan, "team", lambda: SimpleNamespace(num_processes=processes))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(fsdp).lower())
    return check_machine(study, free_bytes=10**15)


def test_under_fsdp_a_gpu_needs_its_share_of_the_layers(counted, monkeypatch):
    study = replace(core.open_study("smoke"), preset=replace(BIG, precision="bf16"))
    counted("NVIDIA L4", (8, 9), 5.5, 5.5)
    for processes, fsdp in ((1, False), (4, False), (1, True)):
        with pytest.raises(StudyError, match="needs a GPU with 6.1 GB"): check_with(monkeypatch, study, processes, fsdp)
    assert check_with(monkeypatch, study, 4, True) is None and training_setting(study) == Setting(4096, True)
    counted("NVIDIA L4", (8, 9), 4.8, 4.8)
    with pytest.raises(StudyError, match="first loads the whole base, 4.4 GB of qwen2-vl-2b .*has 4.8 GB; take larger GPUs"):
        check_with(monkeypatch, study, 4, True)


def test_documents_of_several_pages_are_planned_whole(counted):
    pages = replace(core.open_study("smoke"), preset=replace(BIG, precision="bf16"))
    counted("NVIDIA L4", (8, 9), 24, 24)
    assert not training_setting(pages).checkpointing and training_setting(replace(pages, documents="letters")) == Setting(16896, True)
    counted("NVIDIA L4", (8, 9), 8, 8)
    assert training_setting(pages).checkpointing
    with pytest.raises(StudyError, match="16,896 tokens by tokens_per_document.*--set tokens_per_document=8192 fits"):
        training_setting(replace(pages, documents="letters"))


def test_the_plan_prints_its_cards(monkeypatch, capsys):
    monkeypatch.setattr(plan, "write_plan", lambda study: core.root()/"data"/"results"/"qwen2-vl-2b"/"plan.json")
    cli.plan("qwen2-vl-2b")
    said = capsys.readouterr().out.splitlines()
    row = next(line for line in said if "Tesla T4" in line)
    assert " yes " in row and " fp16 " in row and "USD" in said[1] and said[-1] == "data/results/qwen2-vl-2b/plan.json"


def test_the_setting_of_the_plan_is_that_of_the_run(card):
    sheet = cost.pd.read_csv(core.root()/"data"/"hardware.csv")
    machine = replace(cost.data_sheet_machine(next(sheet.itertuples())), flops_per_s=1.)
    passes = dict.fromkeys(("step", "page"), cost.StepCost([(800., 1)], 0)) | {"recomputed_step": cost.StepCost([(1066., 1)], 0)}
    for gpu in sheet.itertuples():
        row = plan.modelled_row(replace(budget(), **passes), BIG, replace(machine, dtype="bf16"), int(1e9*gpu.memory_gb))
        card(gpu.device, (8, 0), gpu.memory_gb, gpu.memory_gb)
        assert row["fits"] and Setting(row["tokens_at_once"], row["checkpointing"]) == training_setting(core.Study(BIG))
    quantized = plan.modelled_row(replace(budget(), **passes), BIG, machine, int(5.4e9))
    assert not quantized["fits"] and quantized["instead"] == "precision=int8"


def test_a_cpu_trains_whole_batches_and_keeps_its_layers(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(plan, "training_memory", lambda *_: pytest.fail("nothing is counted on a CPU"))
    assert training_setting(core.Study(get_preset("nano"))) == Setting(get_preset("nano").tokens_per_batch, False)


def test_autocast_follows_the_precision(recwarn):
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", None)):
        with autocast("cpu", precision):
            assert torch.is_autocast_enabled("cpu") is (dtype is not None)
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is (dtype or torch.float32)
    assert not [warning for warning in recwarn if "utocast" in str(warning.message)]
