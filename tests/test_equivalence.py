"The fast paths against the plain ones of transformers: the same loss, gradients and answers, at nano size and at Qwen2-VL-2B's widths."
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from datasets import concatenate_datasets
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from docvlm.engine import answering
from docvlm.engine.answering import answer_rows
from docvlm.core import Study, open_study
from docvlm.data import load_splits
from docvlm.bench.throughput import exact_features
from docvlm.engine.attention import ATTENTION, autocast, cannot_run
from docvlm.model import add_lora, hold_weights, load_adapter, load_base, load_processor
from docvlm.engine.packing import collate_pages
from docvlm.bench.throughput import generate_answers, load_plain, question_batch
from docvlm.engine.features import PageFeatures, cache_features
from docvlm.inputs.images import pages_of
from docvlm.bench.throughput import FreshFeatures, ScratchStudy, changed, full_logits, one_question_a_page
from docvlm.engine.attention import recompute_layers
from docvlm.presets import with_variant
from docvlm.training import _trainer, answer_loss, pack_rows, page_groups


def small_pages(image_tokens, max_new_tokens=8):
    "The smoke study on pages of few tokens."
    study = open_study("smoke")
    return replace(study, preset=replace(study.preset, max_pixels=image_tokens*28*28,
                                         max_new_tokens=dict.fromkeys(study.preset.max_new_tokens, max_new_tokens)))


def wide_model(processor):
    "Two layers of Qwen2-VL-2B, vision and language at their true widths, with nano's vocabulary and random weights."
    token = processor.tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={"vocab_size": len(processor.tokenizer), "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 2,
                     "num_attention_heads": 12, "num_key_value_heads": 2,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
        vision_config={"depth": 2, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 1536}, tie_word_embeddings=True,
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"), vision_start_token_id=token("<|vision_start|>"))
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration._from_config(config, attn_implementation=ATTENTION, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def rows(): return concatenate_datasets(list(load_splits(open_study("smoke")).values()))


@pytest.fixture(scope="module")
def processor(): return load_processor(small_pages(64).preset)


def loss_and_gradients(model, losses):
    model.zero_grad()
    total = 0.0
    for loss in losses: loss.backward(); total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def adapted(base, preset, variant):
    "The base with an adapter of that variant whose weights are random, because a new one changes nothing."
    model = add_lora(base, with_variant(preset, variant), 8, 1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(len(name)))
        if "lora_magnitude" in name: parameter.data *= torch.linspace(0.9, 1.1, len(parameter))
    return model


@pytest.mark.parametrize("size, pages, questions, variant, tensors", [
    ("nano", 6, 4, "", 8), ("2B widths", 2, 2, "", 8), ("nano", 6, 4, "rslora", 8), ("nano", 6, 4, "dora", 12), ("nano", 6, 4, "mlp", 14)])
def test_packed_pages_give_the_loss_and_gradients_of_plain_rows(rows, processor, size, pages, questions, variant, tensors):
    study = small_pages(64 if size == "nano" else 36)
    processor = processor if size == "nano" else load_processor(study.preset)
    base = load_base(study.preset, "fp32") if size == "nano" else wide_model(processor)
    every = [page["rows"][:questions] for page in pages_of(rows).values() if len(page["rows"]) >= questions]
    some = rows.select([i for page in every[::len(every)//pages][:pages] for i in page])
    features = exact_features(base, processor, some)
    assert len({grid for _, grid in features.values()}) > 1, "pages of one grid test less"
    model = adapted(base, study.preset, variant)

    packed = pack_rows(study, processor, some, features)
    batch = collate_pages(packed, features)
    found = loss_and_gradients(model, [answer_loss(model, batch)])
    with torch.no_grad(): whole = answer_loss(model, batch, logits=full_logits).item()
    base.set_attn_implementation("sdpa")
    plain = [question_batch(processor, study.preset, [some[i] for i in range(start, len(some))[:questions + 1]])
             for start in range(0, len(some), questions + 1)]  # batches that mix pages
    count = sum(int((b["labels"] != -100).sum()) for b in plain)
    want = loss_and_gradients(model, (model(**b, num_items_in_batch=count).loss for b in plain))

    assert count == int((batch["labels"] != -100).sum()) and abs(whole/found[0] - 1) < 1e-6
    assert abs(found[0]/want[0] - 1) < 1e-5
    assert len(found[1]) == len(want[1]) == tensors*base.config.text_config.num_hidden_layers
    for name, gradient in found[1].items(): assert (gradient - want[1][name]).norm() <= 1e-4*want[1][name].norm(), name


def shared_pages(study, processor, rows, base, pages=3, questions=3):
    "A batch of pages that several questions share, and the exact features of its pages."
    every = [page["rows"][:questions] for page in pages_of(rows).values() if len(page["rows"]) >= questions]
    some = rows.select([i for page in every[::len(every)//pages][:pages] for i in page])
    features = exact_features(base, processor, some)
    return collate_pages(pack_rows(study, processor, some, features), features), features, some


@pytest.mark.parametrize("variant", ["", "dora", "mlp"])
def test_recomputed_layers_and_parts_of_a_batch_give_the_same_gradients(rows, processor, variant):
    study, base = small_pages(64), load_base(small_pages(64).preset, "fp32")
    batch, _, _ = shared_pages(study, processor, rows, base)
    model, calls, text = adapted(base, study.preset, variant).train(), [], base.model.language_model
    text.norm.register_forward_hook(lambda *_: calls.clear())  # what follows belongs to the backward pass
    for layer in text.layers: layer.mlp.act_fn.register_forward_hook(lambda *_: calls.append(1))
    count = int((batch["labels"] != -100).sum())
    want, kept = loss_and_gradients(model, [answer_loss(model, batch)]), len(calls)
    recompute_layers(model)
    found, again = loss_and_gradients(model, [answer_loss(model, batch)]), len(calls)
    parts = loss_and_gradients(model, (answer_loss(model, part, count) for part in page_groups(batch, 1)))
    assert (kept, again) == (0, len(text.layers) - 1), "the last layer keeps what it computed"
    for loss, gradients in (found, parts):
        assert abs(loss/want[0] - 1) < 1e-5
        for name, gradient in gradients.items(): assert (gradient - want[1][name]).norm() <= 1e-5*want[1][name].norm(), name


@pytest.mark.parametrize("weights", [torch.float32, torch.float16])
def test_fp16_with_loss_scaling_gives_the_gradients_of_fp32(rows, processor, weights):
    study, base = small_pages(64), load_base(small_pages(64).preset, "fp32")
    batch, _, _ = shared_pages(study, processor, rows, base)
    exact = adapted(base, study.preset, "").train()
    want = loss_and_gradients(exact, [answer_loss(exact, batch)])
    model = adapted(load_base(study.preset, "fp32").to(weights), study.preset, "").train()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}, "a scaler refuses fp16 gradients"
    with autocast("cpu", "fp16"): loss, gradients = loss_and_gradients(model, [2**12*answer_loss(model, batch)])
    assert abs(loss/2**12/want[0] - 1) < 1e-2
    whole = torch.stack([(gradient/2**12 - want[1][name]).norm() for name, gradient in gradients.items()]).norm()
    assert whole < 2e-2*torch.stack([gradient.norm() for gradient in want[1].values()]).norm()


def test_page_features_are_16_bit_in_every_precision_and_change_little(rows, processor, tmp_path):
    study, base = small_pages(64), load_base(small_pages(64).preset, "fp32")
    batch, exact, some = shared_pages(study, processor, rows, base)
    in_precision = lambda precision: ScratchStudy(replace(study.preset, precision=precision), folder=tmp_path)
    stored = cache_features(in_precision("fp32"), base, processor, some)
    for key, (feature, grid) in exact.items():
        rounded, same = stored.get(key)
        assert rounded.dtype == torch.bfloat16 and same == grid
        assert ((rounded.float() - feature).abs() <= 2**-8*feature.abs() + 1e-6).all(), "eight bits of precision"
    packed = collate_pages(pack_rows(study, processor, some, stored), stored)
    with torch.no_grad(): losses = [answer_loss(base, each).item() for each in (batch, packed)]
    assert abs(losses[1]/losses[0] - 1) < 1e-2
    answers = [answer_rows(study, base, processor, some, features, "fp32").prediction for features in (exact, stored)]
    assert (answers[0] == answers[1]).mean() >= 0.8
    folders = [PageFeatures(in_precision(precision)).folder for precision in ("auto", "nf4", "int8")]
    assert len(set(folders)) == 1, "vision is never quantized, so a quantized base shares the features"
    assert PageFeatures(in_precision("fp16")).folder not in {PageFeatures(in_precision("fp32")).folder, *folders}


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_a_study_trains_and_answers_on_a_quantized_base(rows, processor, tmp_path, monkeypatch, precision):
    study = changed(small_pages(64, 2), precision=precision, min_steps=1, tokens_per_batch=4096)
    few = rows.select(range(8))
    monkeypatch.setattr("docvlm.training.load_splits", lambda study: {"train": few})
    trainer, questions = _trainer(study, 8, 1, "", tmp_path/"work", "none")
    assert questions == 8 and trainer.train().training_loss < 20
    trained = trainer.model.eval()
    trained.save_pretrained(tmp_path/"adapter", save_embedding_layers=False)
    again = load_adapter(hold_weights(load_base(study.preset)), tmp_path/"adapter")
    features = PageFeatures(study)
    answers = [answer_rows(study, model, processor, few, features).prediction.tolist() for model in (trained, again)]
    assert answers[0] == answers[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has it")
def test_dora_on_an_int8_base_is_noted_as_not_available_on_a_cpu():
    preset = small_pages(64).preset
    with pytest.raises(NotImplementedError) as error: add_lora(load_base(preset, "int8"), with_variant(preset, "dora"), 8, 1)
    assert cannot_run("int8", error.value) == "int8 does not run here: NotImplementedError: PEFT has no DoRA for an INT8 base on a CPU"


def test_dora_on_an_nf4_base_trains_is_saved_and_loaded(rows, processor, tmp_path):
    study, some = small_pages(64), rows.select(range(8))
    load = lambda: hold_weights(load_base(study.preset, "nf4"))
    base = load()
    features = exact_features(base, processor, some)
    batch = collate_pages(pack_rows(study, processor, some, features), features)
    model = adapted(base, study.preset, "dora").train()
    with autocast("cpu", study.preset.precision):
        loss, gradients = loss_and_gradients(model, [answer_loss(model, batch)])
        with torch.no_grad(): want = answer_loss(model.eval(), batch).item()
    assert all(gradient.isfinite().all() for gradient in gradients.values()) and abs(want/loss - 1) < 0.1
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    used = load()
    with torch.no_grad(), autocast("cpu", study.preset.precision):
        answer_loss(used, batch)
        assert answer_loss(load_adapter(used, tmp_path), batch).item() == want


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU dequantizes in its kernel")
@pytest.mark.parametrize("variant", ["", "dora", "mlp"])
def test_held_nf4_weights_train_as_quantized_layers_do_and_answer_as_trained(rows, processor, variant):
    study = small_pages(64)
    some = rows.select([i for page in list(pages_of(rows).values())[::12] for i in page["rows"]])
    models = [change(load_base(study.preset, "nf4")) for change in (lambda model: model, hold_weights)]
    features = exact_features(models[0], processor, some)
    nf4, held = (adapted(base, study.preset, variant).train() for base in models)
    batch = collate_pages(pack_rows(study, processor, some, features), features)
    with autocast("cpu", study.preset.precision):
        first, second = (loss_and_gradients(model, [answer_loss(model, batch)]) for model in (nf4, held))
        with torch.no_grad(): answered = answer_loss(held.eval(), batch).item()
    assert first[0] == second[0] == answered
    for (name, one), other in zip(first[1].items(), second[1].values(), strict=True): assert torch.equal(one, other), name


@pytest.mark.parametrize("variant", ["rslora", "dora", "mlp"])
def test_a_variant_s_adapter_is_saved_loaded_and_answers_as_plain_peft_does(rows, processor, tmp_path, variant):
    study, some = small_pages(64), rows.select(range(0, len(rows), 9))
    made = adapted(load_plain(study.preset, "fp32"), study.preset, variant)
    want = generate_answers(made.eval(), processor, study.preset, some, 1, "fp32")
    with made.disable_adapter(): plain = generate_answers(made, processor, study.preset, some, 1, "fp32")
    assert sum(a != b for a, b in zip(want, plain)) > len(want)//10, "an adapter that changes nothing proves little"
    made.save_pretrained(tmp_path, save_embedding_layers=False)
    fresh = load_base(study.preset, "fp32")
    features = exact_features(fresh, processor, some)
    model = load_adapter(fresh, tmp_path)
    assert answer_rows(study, model, processor, some, features, "fp32").prediction.tolist() == want
    assert made.get_nb_trainable_parameters()[0] == sum(p.numel() for name, p in made.named_parameters() if "lora_" in name)
    with model.disable_adapter(): assert answer_rows(study, model, processor, some, features, "fp32").prediction.tolist() == plain
    assert answer_rows(study, model.unload(), processor, some, features, "fp32").prediction.tolist() == plain


@pytest.fixture(scope="module")
def many(rows):
    "More than 300 questions: each page is asked its own and those of another page of its benchmark."
    by = {b: [i for i, other in enumerate(rows["benchmark"][:]) if other == b] for b in sorted(set(rows["benchmark"][:]))}
    own, other = rows.select([i for some in by.values() for i in some]), [rows[i]["question"] for some in by.values() for i in (*some[7:], *some[:7])]
    both = concatenate_datasets([own, own.remove_columns("question").add_column("question", other).select_columns(own.column_names)])
    assert len(both) >= 300
    return both


def with_answers(rows, processor):
    "The study, the questions, and the answers of `generate` to one after the other."
    study = small_pages(64)
    return study, rows, generate_answers(load_plain(study.preset, "fp32"), processor, study.preset, rows, 1, "fp32")


@pytest.fixture(scope="module")
def asked(many, processor): return with_answers(many.select(range(0, len(many), 2)), processor)


@pytest.mark.slow
def test_three_hundred_questions_are_answered_as_generate_does(many, processor): check_shared_prefixes(*with_answers(many, processor), processor)


def test_shared_prefixes_give_the_answers_of_one_by_one_generation(asked, processor): check_shared_prefixes(*asked, processor)


def check_shared_prefixes(study, rows, want, processor):
    base = load_base(study.preset, "fp32")
    found = answer_rows(study, base, processor, rows, exact_features(base, processor, rows), "fp32")
    wrong = [i for i, pair in enumerate(zip(found.prediction, want)) if pair[0] != pair[1]]
    assert not wrong, [(found.prediction[i], want[i]) for i in wrong[:5]]
    assert len(set(want)) > 30, "answers that are all alike prove little"


@pytest.mark.parametrize("alone, tokens_in_flight", [(True, 32768), (False, 1), (False, 300)])
def test_neither_sharing_nor_the_memory_budget_changes_an_answer(asked, processor, alone, tokens_in_flight):
    study, rows, want = asked
    some, base = rows.select(range(0, len(rows), 6)), load_base(study.preset, "fp32")
    if alone: some = one_question_a_page(some)
    changed = replace(study, preset=replace(study.preset, tokens_in_flight=tokens_in_flight))
    found = answer_rows(changed, base, processor, some, exact_features(base, processor, some), "fp32")
    assert found.prediction.tolist() == want[::6]


def test_left_padding_of_generate_gives_the_same_answers(asked, processor):
    study, rows, want = asked
    assert generate_answers(load_plain(study.preset, "fp32"), processor, study.preset, rows.select(range(0, len(rows), 6)), 8, "fp32") == want[::6]


def test_the_position_offset_of_an_earlier_page_does_not_leak(asked, processor):
    study, rows, want = asked
    some, base = rows.select([0, 50, 100]), load_base(study.preset, "fp32")
    features = exact_features(base, processor, some)
    for left_behind in (torch.tensor([[-1000]]), torch.tensor([[7], [8]])):
        base.model.rope_deltas = left_behind
        assert answer_rows(study, base, processor, some, features, "fp32").prediction.tolist() == [want[i] for i in (0, 50, 100)]
    base.set_attn_implementation("sdpa")
    assert generate_answers(base, processor, study.preset, some, 1, "fp32") == [want[i] for i in (0, 50, 100)], "and none is left to `generate`"


def test_memory_that_runs_out_halves_the_batch_and_keeps_the_answers(asked, processor, monkeypatch):
    study, rows, want = asked
    some, base, sizes = rows.select(range(0, 120, 3)), load_base(study.preset, "fp32"), []
    plenty, answer = 12, answering.answer
    def short_of_memory(model, template, features, grids, questions, *more):
        sizes.append(len(questions))
        if len(questions) > plenty: raise RuntimeError("CUDA out of memory. Tried to allocate more than there is.")
        return answer(model, template, features, grids, questions, *more)
    monkeypatch.setattr(answering, "answer", short_of_memory)
    found = answer_rows(study, base, processor, some, exact_features(base, processor, some), "fp32")
    assert max(sizes) > plenty and found.prediction.tolist() == want[:120:3]


@dataclass(frozen=True)
class Scratch(Study):
    "A study whose cache lies elsewhere."
    folder: Path = Path()
    @property
    def cache_dir(self): return self.folder


def test_cached_features_are_those_that_vision_computes(rows, processor, tmp_path):
    study, some = small_pages(64), rows.select(range(60))
    study = replace(study, preset=replace(study.preset, precision="fp32"))
    base = load_base(study.preset, "fp32")
    fill = lambda name: cache_features(Scratch(study.preset, folder=tmp_path/name), base, processor, some)
    first, second, fresh = fill("first"), fill("second"), FreshFeatures(base, processor, some, "fp32")
    assert isinstance(first, PageFeatures) and first.folder != second.folder
    for page in pages_of(some).values():
        (feature, grid), (again, _), (alone, fresh_grid) = (source.get(*page["keys"]) for source in (first, second, fresh))
        assert torch.equal(feature, again) and grid == fresh_grid == fresh.grid(*page["keys"])
        exact = exact_features(base, processor, some.select(page["rows"]))[page["keys"][0]][0]
        assert torch.equal(alone, exact.bfloat16()), "computed now, it is what the cache would hold"
        assert (feature.float() - exact).abs().max() <= 2**-8*exact.abs().max(), "a page among others differs by rounding alone"
