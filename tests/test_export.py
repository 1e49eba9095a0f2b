"docvlm-export: every form is verified, a failed export leaves nothing, and llama.cpp's converter reads what we merge."
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import refusal
from safetensors.torch import load_file, save_file
from schema import schema_errors

from docvlm import cli
from docvlm.apps import export
from docvlm.core import Study, open_study
from docvlm.files import StudyError, read_json, results_schema
from docvlm.inputs.sources import rows_dataset
from docvlm.model import add_lora, load_base, qwen2_vl_2b_config, save_random_base, with_layers
from docvlm.paper.serving import export_table
from docvlm.presets import get_preset
from docvlm.report import current_exports
from docvlm.steps import content_digest

SMOKE = open_study("smoke")


@pytest.fixture
def adapter(tmp_path):
    "What an adapter's folder must hold, for a base of three rotary sections."
    (folder := tmp_path/"adapter").mkdir()
    (folder/"adapter_config.json").write_text(json.dumps({"r": 16, "base_model_name_or_path": "elsewhere/nano"}))
    save_file({"x": torch.zeros(1)}, folder/"adapter_model.safetensors")
    return folder


@pytest.fixture
def made(monkeypatch, tmp_path):
    "In place of models and converters: text files, and answers of which the last differs. Returns what was written."
    rows = rows_dataset([{"question_id": f"q{n}", "doc_id": f"d{n//2}", "images": [""], "question": "?", "answers": ["9"], "doc_types": [],
                          "benchmark": "docvqa", "split": "test", "source": ""} for n in range(6)])
    answers = lambda wrong: pd.DataFrame({"prediction": ["9"]*5 + [wrong], "seconds": [.1, None, .2, None, .3, None]})
    written = []
    def variants(study, form, adapter, merged, folder, rows, about):
        folder.mkdir(exist_ok=True)
        (folder/"model.bin").write_text(form)
        (folder/"adapter_config.json").write_text('{"r": 16}')
        written.append((form, merged.exists()))
        return {form: ([folder/"model.bin"], lambda: answers("8" if form == "int8" else "9"))}
    monkeypatch.setattr(export, "_variants", variants)
    monkeypatch.setattr(export, "_questions_for", lambda study, number: rows)
    monkeypatch.setattr(export, "_answers_here", lambda *given: answers("9"))
    monkeypatch.setattr(export, "_merge_adapter", lambda study, adapter, folder: folder.mkdir())
    monkeypatch.setattr(export, "_timed_rows", lambda *given: [0, 2, 4])
    for name in ("load_base", "load_adapter", "_environment_for"): monkeypatch.setattr(export, name, lambda *given: None)
    monkeypatch.setattr(export, "_cannot_export", lambda *given: "")
    monkeypatch.setattr(export, "environment", lambda: {})
    monkeypatch.setattr(export, "code_digests", lambda notebook: {})
    data = {"digest": {"test": "0f"}}
    fresh = type("Step", (), {"state": lambda self: "fresh"})()
    monkeypatch.setattr(Study, "step", lambda self, name: fresh)
    monkeypatch.setattr(Study, "result", lambda self, name: data)
    monkeypatch.setattr(Study, "results_dir", tmp_path/"results")
    monkeypatch.setattr(Study, "run_dir", tmp_path/"run")
    return written


def test_every_form_is_compared_and_recorded(made, adapter, tmp_path):
    lines = export.export_adapter(SMOKE, adapter, "mine", tmp_path/"out", [], 6)
    assert [form for form, _ in made] == list(export.EXPORT_FORMATS)
    assert sorted(path.name for path in (tmp_path/"out").iterdir()) == sorted(export.EXPORT_FORMATS), "and nothing else"
    found = read_json(tmp_path/"results"/"export.json")
    cell = found["exports"]["int8"]["variants"]["int8"]
    assert cell["equal"] == 5/6 and cell["bytes"] == 4 and cell["latency_ms"]["p50"] == 200
    assert cell["overall"]["baseline"]["value"] == 1 and cell["overall"]["ours"]["value"] == 5/6 and cell["overall"]["delta"]["p_value"] <= 1
    assert all(record["content"] == content_digest(record) for record in found["exports"].values())
    assert not [e for e in schema_errors(found, "export.json", results_schema(), set()) if " env " not in e and " code " not in e]
    assert any(line.startswith("vllm serve ") for line in lines) and "int8: 0 MiB, 83.3% of 6 answers equal" in "\n".join(lines)


def test_the_report_shows_the_forms_of_its_own_adapters(made, adapter, tmp_path):
    export.export_adapter(SMOKE, adapter, "mine", tmp_path/"out", ["merged"], 6)
    digest = read_json(tmp_path/"results"/"export.json")["exports"]["merged"]["adapter_digest"]
    results = lambda adapter, test: {"training": {"seeds": {"42": {"adapter_digest": adapter}}}, "data": {"digest": {"test": test}}}
    assert "merged" in export_table(current_exports(SMOKE, results(digest, "0f")))
    assert current_exports(SMOKE, results("other", "0f")) == current_exports(SMOKE, results(digest, "other")) == {}
    (file := tmp_path/"results"/"export.json").write_text(file.read_text().replace('"equal": 1.0', '"equal": 0.5'))
    with pytest.raises(StudyError, match="smoke/export: merged has been changed"): current_exports(SMOKE, results(digest, "0f"))


@pytest.mark.parametrize("stop", [StudyError("no"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_export_leaves_nothing_but_what_was_complete(made, adapter, tmp_path, monkeypatch, stop):
    variants = export._variants
    def failing(study, form, adapter, merged, folder, *rest):
        variants(study, form, adapter, merged, folder, *rest)
        if form == "gguf": raise stop
        return variants(study, form, adapter, merged, folder, *rest)
    monkeypatch.setattr(export, "_variants", failing)
    with pytest.raises((StudyError, KeyboardInterrupt)): export.export_adapter(SMOKE, adapter, "mine", tmp_path/"out", ["gguf"], 6)
    assert not (tmp_path/"out").exists()
    with pytest.raises((StudyError, KeyboardInterrupt)): export.export_adapter(SMOKE, adapter, "mine", tmp_path/"out", ["merged", "gguf"], 6)
    assert [path.name for path in (tmp_path/"out").iterdir()] == ["merged"]
    assert read_json(tmp_path/"results"/"export.json")["exports"].keys() == {"merged"}


def test_bad_input_is_one_line_with_a_remedy(made, adapter, tmp_path, capsys, monkeypatch):
    out, given = str(tmp_path/"out"), {"preset": "smoke", "adapter": str(adapter)}
    assert "Unknown format 'onnx'; choose from: merged, vllm, gguf, int8" in refusal(capsys, cli.export, out, ["onnx"], **given)
    assert "--questions must be a whole number of at least 1" in refusal(capsys, cli.export, out, questions=0, **given)
    assert "No adapter in no/such; " not in (text := refusal(capsys, cli.export, out, preset="smoke", adapter="no/such")) and "No adapter in no/such" in text
    (tmp_path/"out"/"gguf").mkdir(parents=True)
    assert f"{out}/gguf exists; remove it or name another folder" in refusal(capsys, cli.export, out, ["gguf"], **given)
    (tmp_path/"out"/"letter.txt").write_text("Dear")
    assert "holds letter.txt; name a new folder" in refusal(capsys, cli.export, out, ["merged"], **given)
    assert "is a file; name a folder" in refusal(capsys, cli.export, str(tmp_path/"out"/"letter.txt"), ["merged"], **given)
    (adapter/"record.json").write_text(json.dumps({"base_digest": "another"}))
    assert "was trained on another version of data/nano" in refusal(capsys, cli.export, str(tmp_path/"new"), **given)
    (adapter/"record.json").unlink()
    (adapter/"adapter_config.json").write_text(json.dumps({"r": 16, "base_model_name_or_path": "Qwen/Qwen2-VL-7B-Instruct"}))
    assert "names the base Qwen/Qwen2-VL-7B-Instruct, and this study's is data/nano; name another adapter" in refusal(capsys, cli.export, str(tmp_path/"new"), **given)
    assert not made and not (tmp_path/"new").exists()


def test_a_converter_that_is_missing_is_said(tmp_path):
    with pytest.raises(StudyError, match=f"convert_hf_to_gguf.py is missing in {tmp_path}/apart/source; remove {tmp_path}/apart and run again"):
        export._write_gguf(tmp_path/"apart", tmp_path/"merged", tmp_path/"gguf")
    assert not (tmp_path/"gguf").exists()


def test_the_context_of_llama_cpp_holds_all_pages_of_a_document():
    preset = get_preset("qwen2-vl-2b")
    page = type("Page", (), {"size": (10_000, 10_000)})()
    whole = export._context_for(Study(preset), [{"images": [page]}, {"images": [page]*12}, {"images": [page]*2}])
    assert whole - export._context_for(Study(preset), [{"images": [page]}]) == 11*27*27, "a square page of at most 768 tokens"


def test_nano_has_neither_a_vllm_nor_a_gguf_form(adapter):
    assert export._possible_formats(SMOKE, adapter, [])[0] == ["merged", "int8"]
    for form, tool in (("vllm", "vLLM"), ("gguf", "llama.cpp")):
        with pytest.raises(StudyError, match=f"{tool} knows rotary positions in 3 sections, and data/nano has 32; export it as merged or int8"):
            export._possible_formats(SMOKE, adapter, [form])


@pytest.mark.parametrize("change, why", [({"use_dora": True}, "no DoRA"), ({"r": 1024}, "ranks up to 512"), ({}, "")])
def test_what_vllm_cannot_serve_is_refused(adapter, monkeypatch, change, why):
    sections = type("Config", (), {"get_text_config": lambda self: type("Text", (), {"rope_parameters": {"mrope_section": [16, 24, 24]}})})()
    monkeypatch.setattr(export, "base_config", lambda preset: sections)
    monkeypatch.setattr(export, "load_processor", lambda preset: None)
    (adapter/"adapter_config.json").write_text(json.dumps({"r": 16} | change))
    assert why in export._cannot_export(SMOKE, adapter, "vllm") and bool(why) == bool(export._cannot_export(SMOKE, adapter, "vllm"))


@pytest.mark.parametrize("command, message", [
    (["sh", "-c", "echo ERROR: No matching distribution found >&2; exit 1"], "ERROR: No matching distribution found"),
    (["/no/such/python"], "No such file or directory: /no/such/python")])
def test_an_environment_that_cannot_be_made_leaves_nothing(monkeypatch, tmp_path, command, message):
    run = export._run_apart
    monkeypatch.setattr(Study, "cache_dir", tmp_path)
    monkeypatch.setattr(export, "_run_apart", lambda given, *rest, **options: run(command, *rest, **options))
    with pytest.raises(StudyError, match=f"Installing .*{message}; it takes a connection to PyPI, cmake and a C\\+\\+ compiler"):
        export._environment_for(SMOKE, "gguf")
    assert [path.suffix for path in (tmp_path/"environments").iterdir()] == [".lock"]


def tensors_of(file, gguf):
    "Tensors of a GGUF file by name, dequantized, and their types."
    found = {t.name: (gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1].tolist()), t.tensor_type.name)
             for t in gguf.GGUFReader(file).tensors}
    return {name: value for name, (value, _) in found.items()}, {name: kind for name, (_, kind) in found.items()}


def check_gguf(folder, merged, gguf):
    "Tensor names, shapes and values of the files of `_write_gguf` against the merged weights."
    weights = {name: value.float().numpy() for file in merged.glob("*.safetensors") for name, value in load_file(file).items()}
    layers = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
              "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    pairs = {f"blk.{n}.{short}.weight": f"model.layers.{n}.{name}.weight" for n in range(2) for short, name in layers.items()}
    pairs["token_embd.weight"] = "model.embed_tokens.weight"
    for kind in ("f16", "Q8_0"):
        values, kinds = tensors_of(folder/f"model-{kind}.gguf", gguf)
        assert pairs.keys() <= values.keys() and len(values) == 2*12 + 2, "no output matrix: it is tied"
        for name, source in pairs.items():
            want = weights[source]
            assert values[name].shape == want.shape and kinds[name] == kind.upper(), (name, kinds[name])
            if kind == "f16": assert np.array_equal(values[name], want.astype(np.float16).astype(np.float32)), name
            else:
                step = np.abs(want.reshape(-1, 32)).max(1, keepdims=True)/127
                assert (np.abs(values[name] - want).reshape(-1, 32) <= (.5 + 127/2**11)*step + 1e-7).all(), name  # half a step, and its f16
    values, _ = tensors_of(folder/"mmproj-f16.gguf", gguf)
    patch = weights["visual.patch_embed.proj.weight"].astype(np.float16)
    assert np.array_equal(values["v.patch_embd.weight"], patch[:, :, 0]) and np.array_equal(values["v.patch_embd.weight.1"], patch[:, :, 1])
    assert np.array_equal(values["mm.2.weight"], weights["visual.merger.mlp.2.weight"].astype(np.float16))


@pytest.fixture(scope="module")
def small_2b(tmp_path_factory):
    "Two language layers and three vision blocks of Qwen2-VL-2B's widths, its tokenizer, and an adapter that does something."
    folder = tmp_path_factory.mktemp("small")
    config = with_layers(qwen2_vl_2b_config(), 2)
    config.vision_config.depth = 3
    save_random_base(folder/"base", config)
    preset = replace(get_preset("qwen2-vl-2b"), base=str(folder/"base"), revision="")
    model = add_lora(load_base(preset, "fp32", "cpu"), preset, 16, 42)
    for name, parameter in model.named_parameters():
        if "lora_B" in name: parameter.data.normal_(0, .01)
    model.save_pretrained(folder/"adapter")
    return Study(preset), folder/"adapter"


@pytest.mark.slow
def test_the_merged_model_is_the_sum_rounded_once(small_2b, tmp_path):
    study, adapter = small_2b
    export._merge_adapter(study, adapter, tmp_path/"merged")
    merged, base = load_base(replace(study.preset, base=str(tmp_path/"merged")), "fp32", "cpu"), load_base(study.preset, "fp32", "cpu")
    deltas = load_file(adapter/"adapter_model.safetensors")
    name = "model.language_model.layers.1.self_attn.q_proj"
    up, down = (deltas[f"base_model.model.{name}.lora_{part}.weight"] for part in "BA")
    want = (base.get_submodule(name).weight + 2*up @ down).bfloat16().float()
    assert torch.equal(merged.get_submodule(name).weight, want)
    assert torch.equal(merged.get_submodule("model.visual.blocks.0.attn.qkv").weight, base.get_submodule("model.visual.blocks.0.attn.qkv").weight)
    assert export._cannot_export(study, adapter, "gguf") == export._cannot_export(study, adapter, "vllm") == ""


@pytest.mark.slow
def test_llama_cpp_s_converter_reads_the_merged_model(small_2b, tmp_path, monkeypatch):
    "Without compiling llama.cpp, and so without Q4_K_M and answers. Takes PyPI."
    study, adapter = small_2b
    run = export._run_apart
    def lighter(command, *rest, **options):
        if export.QUANTIZE in command: return ""
        return run([part for part in command if not str(part).endswith(".tar.gz")], *rest, **options)
    monkeypatch.setattr(export, "_run_apart", lighter)
    monkeypatch.setattr(Study, "cache_dir", tmp_path/"cache")
    export._merge_adapter(study, adapter, tmp_path/"merged")
    apart = export._environment_for(study, "gguf")
    export._write_gguf(apart, tmp_path/"merged", tmp_path/"gguf")
    monkeypatch.syspath_prepend(str(next((apart/"source").glob("*/vendor/llama.cpp/gguf-py"))))
    import gguf
    check_gguf(tmp_path/"gguf", tmp_path/"merged", gguf)
    shutil.rmtree(tmp_path)


@pytest.mark.soak
def test_llama_cpp_answers_as_the_adapter_does(small_2b, tmp_path):
    "Compiles llama.cpp, in up to half an hour: all three types answer, f16 as the merged model does."
    from PIL import Image
    study, adapter = small_2b
    study = replace(study, preset=replace(study.preset, max_new_tokens=dict.fromkeys(("docvqa", "infovqa", "chartqa"), 8), latency_pages=2))
    for n in range(2): Image.effect_noise((224, 168), 60).convert("RGB").save(tmp_path/f"{n}.png")
    rows = rows_dataset([{"question_id": f"q{n}", "doc_id": f"d{n}", "images": [str(tmp_path/f"{n}.png")], "question": f"What is item {n}?",
                          "answers": ["9"], "doc_types": [], "benchmark": "docvqa", "split": "test", "source": ""} for n in range(2)])
    export._merge_adapter(study, adapter, tmp_path/"merged")
    want = export._answers_of_export(study, tmp_path/"merged", load_base(replace(study.preset, base=str(tmp_path/"merged")), "fp32"), rows)
    made = export._gguf(study, tmp_path/"merged", tmp_path/"gguf", rows, 2)
    answers = {kind: ask() for kind, (_, ask) in made.items()}
    assert answers["f16"].prediction.tolist() == want.prediction.tolist()
    sizes = [(tmp_path/"gguf"/f"model-{kind}.gguf").stat().st_size for kind in export.GGUF_TYPES]
    assert sizes == sorted(sizes, reverse=True) and all(len(found) == 2 for found in answers.values())
