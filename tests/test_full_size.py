"""The study's own functions on Qwen2-VL-2B's exact architecture, tokenizer and hub layout, with random weights.

Two layers of each tower by `make slow`'s first half, in about a minute; all of them in its second, in about 20 GiB of memory."""
import gc
import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import TrainerCallback

from docvlm import training
from docvlm.engine.answering import answer
from docvlm.core import Study
from docvlm.presets import get_preset
from docvlm.data import load_splits, prepare_data, prepared_folder
from docvlm.evaluation import evaluate_study
from docvlm.model import load_base, load_processor, qwen2_vl_2b_config
from docvlm.engine.packing import chat_template, page_features
from docvlm.model import QWEN_SPECIAL_TOKENS, byte_ranks, save_random_base, with_layers
from docvlm.bench.cost import PREFIX_TOKENS
from docvlm.engine.features import PageFeatures
from docvlm.inputs.images import pages_of
from docvlm.training import adapter_folder, train_adapter, train_study

pytestmark = pytest.mark.slow
# As published in Qwen/Qwen2-VL-2B-Instruct: chat_template.json, config.json, generation_config.json, preprocessor_config.json
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
CONFIG = {
    "architectures": ["Qwen2VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654, "image_token_id": 151655,
    "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02, "intermediate_size": 8960,
    "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2_vl", "num_attention_heads": 12,
    "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 1536,
                      "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2}}
GENERATION = {"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
              "repetition_penalty": 1.0, "temperature": 0.01, "top_p": 0.001, "top_k": 1}
IMAGES = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
          "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
          "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
ANSWERS = ("7 May 1998", "$1,250.00", "Accounting", "42 %")


def by_ranks(word, ranks):
    "Tiktoken's rule for one word: again and again join the two neighbours that make the token of lowest rank."
    parts = [bytes([byte]) for byte in word]
    while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks]:
        _, i = min(pairs)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


def save_base(folder, layers):
    "A folder like the hub's: random weights, and the small files word for word as published."
    parameters = save_random_base(folder, with_layers(qwen2_vl_2b_config(), layers))
    for name in ("chat_template.jinja", "processor_config.json"): (folder/name).unlink(missing_ok=True)
    depths = {"num_hidden_layers": layers, "vision_config": CONFIG["vision_config"] | {"depth": layers}} if layers else {}
    for name, content in (("config", CONFIG | depths), ("generation_config", GENERATION), ("preprocessor_config", IMAGES),
                          ("chat_template", {"chat_template": CHAT_TEMPLATE})):
        (folder/f"{name}.json").write_text(json.dumps(content))
    return parameters


def save_documents(folder, pages):
    "Pages of noise with two questions each; the last two questions, in Korean and Arabic, are about a document of two pages."
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (folder/split).mkdir(parents=True)
        for page in range(pages):
            Image.fromarray(rng.integers(0, 255, (168, 224, 3), np.uint8)).save(folder/split/f"{page}.png")
        lines = [{"file_name": f"{page}.png", "question": f"What is item {2*page + i}?", "answers": [ANSWERS[(page + i) % 4]]}
                 for page in range(pages - 1) for i in range(2)]
        several = {"file_names": [f"{page}.png" for page in (pages - 2, pages - 1)], "document": "both"}
        lines += [{**several, "question": "합계는 얼마입니까?", "answers": ["천이백 원"], "language": "ko"},
                  {**several, "question": "ما هو المجموع؟", "answers": ["٤٢"], "language": "ar"}]
        (folder/split/"metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture(scope="module")
def ranks(): return byte_ranks()


@pytest.fixture(scope="module", params=(2, 0), ids=("two-layers", "full-size"))
def study(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    save_documents(folder/f"random-2b-{request.param}", 8)
    parameters = save_base(folder/"base", request.param)
    assert request.param or parameters == 2_208_985_600
    gc.collect()
    preset = replace(get_preset("qwen2-vl-2b"), base=str(folder/"base"), revision="", max_pixels=64*28*28, tokens_per_page=400,
                     tokens_per_batch=150, seeds=(42,), resamples=50, min_steps=1,
                     max_new_tokens=dict.fromkeys(("docvqa", "infovqa", "chartqa"), 4))
    opened = Study(preset, str(folder/f"random-2b-{request.param}"))
    shutil.rmtree(opened.run_dir, ignore_errors=True)
    yield opened
    for left in (opened.run_dir, PageFeatures(opened).folder, prepared_folder(opened), folder): shutil.rmtree(left, ignore_errors=True)


def test_tokenizer_and_processor_are_the_published_ones(study, ranks):
    processor = load_processor(study.preset)
    encode, decode = processor.tokenizer.encode, processor.tokenizer.decode
    assert [processor.tokenizer.convert_tokens_to_ids(token) for token in QWEN_SPECIAL_TOKENS] == list(range(151643, 151657))
    assert encode("Hello, world!") == [9707, 11, 1879, 0]
    for text in ("Invoice № 1024: €3.50 due", "  two  spaces\n\n\ttab", "日本語 naïve I'll", "7 May 1998<|im_end|>"):
        assert decode(encode(text)) == text
    for word in ("Accounting", " infographics", " Überweisung", "日本語", " antidisestablishmentarianism"):
        assert encode(word) == by_ranks(word.encode(), ranks), word
    template = chat_template(processor)
    assert len(template.prefix([0])) == PREFIX_TOKENS and template.image_token_id == 151655 and template.end_token_id == 151645
    inputs = processor.image_processor(images=[Image.new("RGB", (1700, 2200))], return_tensors="pt")
    assert inputs["image_grid_thw"].prod()//4 <= 64 and inputs["pixel_values"].shape[1] == 1176


def test_published_files_open_as_the_planned_architecture(study):
    model, planned = load_base(study.preset), qwen2_vl_2b_config()
    for part in ("text_config", "vision_config"):
        found, wanted = getattr(model.config, part), getattr(planned, part)
        names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size", "embed_dim",
                 "num_heads", "patch_size", "spatial_merge_size", "mlp_ratio", "rms_norm_eps", "max_position_embeddings")
        assert all(getattr(found, name) == getattr(wanted, name) for name in names if hasattr(wanted, name)), part
    turns, planned_turns = (config.text_config.rope_parameters for config in (model.config, planned))
    assert all(turns[name] == planned_turns[name] for name in ("rope_type", "rope_theta", "mrope_section"))
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert not model.generation_config.do_sample and model.model.language_model.embed_tokens.weight.std() > 0.01


class StopAtCheckpoint(TrainerCallback):
    def __init__(self, title): pass
    def on_save(self, *args, **kwargs): raise KeyboardInterrupt


def test_training_stops_resumes_and_saves_an_adapter(study, monkeypatch):
    steps, loss = [], training.answer_loss
    monkeypatch.setattr(training, "answer_loss", lambda *args: steps.append(1) or loss(*args))
    study.step("data").run(lambda: prepare_data(study))
    with monkeypatch.context() as patch:
        patch.setattr(training, "LiveCurve", StopAtCheckpoint)
        with pytest.raises(KeyboardInterrupt): train_adapter(study, study.preset.lora_rank, 42)
    gc.collect()
    before = len(steps)
    result = study.step("training").run(lambda: train_study(study))
    assert before == 5 and len(steps) == result["setup"]["steps"] == 8, "the second run went on from the checkpoint"
    layers = json.loads((Path(study.preset.base)/"config.json").read_text())["num_hidden_layers"]
    assert result["model"]["trainable_parameters"] == 9728*layers*study.preset.lora_rank
    assert (adapter_folder(study, study.preset.lora_rank, 42)/"adapter_model.safetensors").exists()


def test_merged_and_unmerged_adapter_agree(study):
    processor, model, rows = load_processor(study.preset), load_base(study.preset), load_splits(study)["test"]
    template, features = chat_template(processor), training.cache_features(study, model, processor, rows)
    cached = [page_features(features, page["keys"]) for page in list(pages_of(rows).values())[:3]]
    asked = [processor.tokenizer.encode(f"What is item {i}?") for i in range(6)]

    def answers(model):
        with torch.no_grad(): return answer(model, template, *zip(*cached), asked, [0, 0, 1, 1, 2, 2], 4)
    base = answers(model)
    model = PeftModel.from_pretrained(model, adapter_folder(study, study.preset.lora_rank, 42)).eval()
    apart = answers(model)
    merged = answers(model.merge_and_unload())
    assert merged[0] == apart[0] and np.allclose(merged[1], apart[1], rtol=1e-3)
    assert not np.allclose(base[1], apart[1], rtol=1e-3), "the adapter changes nothing"


def test_evaluation_reports_predictions_of_base_and_adapter(study):
    result = study.step("evaluation").run(lambda: evaluate_study(study))
    cell = result["benchmarks"]["docvqa"]
    assert cell["questions"] == 16 and cell["images"] == 9 and 0 <= cell["baseline"]["value"] <= 1
    assert {group: part["questions"] for group, part in result["by_language"].items()} == {"Korean": 1, "Arabic": 1}
    assert result["systems"] == ["base", "lora-r16-seed42"] and study.step("evaluation").state() == "fresh"


def test_memory_stays_within_20_gib(study):
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024 < 20*2**30
