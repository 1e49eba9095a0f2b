"Sharing a page among its questions, caching it and stopping half-way change the cost, not the result."
import gc
import math
import weakref
from dataclasses import replace

import pytest
import torch
from transformers import TrainingArguments

from docvlm.engine import answering
from docvlm import evaluation, training
from docvlm.engine.answering import answer_rows
from docvlm.core import Study, open_study
from docvlm.files import StudyError
from docvlm.steps import Step
from docvlm.data import load_splits
from docvlm.engine.features import cache_features
from docvlm.model import add_lora, load_base, load_processor
from docvlm.engine.packing import collate_pages
from docvlm.training import AnswerTrainer, TrainingBatches, answer_loss, pack_rows


@pytest.fixture(scope="module")
def parts():
    study = open_study("smoke")
    processor, base = load_processor(study.preset), load_base(study.preset, "fp32")
    rows = load_splits(study)["train"]
    return study, processor, base, rows, cache_features(study, base, processor, rows)


def losses_and_gradients(parts, batches):
    study, processor, base, _, features = parts
    model = add_lora(load_base(study.preset, "fp32"), study.preset, 8, 1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(len(name)))
    count, total = sum(int((page.labels != -100).sum()) for pages in batches for page in pages), 0
    for pages in batches:
        loss = answer_loss(model, collate_pages(pages, features), count)
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("pages_in_row", [1, 3, 100])
def test_packed_rows_give_the_loss_and_gradients_of_single_questions(parts, pages_in_row):
    study, processor, _, rows, features = parts
    rows = rows.select(range(24))
    packed = pack_rows(study, processor, rows, features)
    single = [page for i in range(len(rows)) for page in pack_rows(study, processor, rows.select([i]), features)]
    loss, gradients = losses_and_gradients(parts, [packed[i:i + pages_in_row] for i in range(0, len(packed), pages_in_row)])
    loss_single, gradients_single = losses_and_gradients(parts, [[page] for page in single])
    assert abs(loss/loss_single - 1) < 1e-5
    for name, gradient in gradients.items():
        assert (gradient - gradients_single[name]).norm() <= 1e-4*gradients_single[name].norm(), name


def test_an_empty_answer_is_the_end_token_alone(parts):
    study, processor, _, rows, features = parts
    absent = rows.select([0]).remove_columns("answers").add_column("answers", [[""]], feature=rows.features["answers"])
    page, = pack_rows(study, processor, absent, features)
    assert page.labels[page.labels != -100].tolist() == [processor.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    loss, _ = losses_and_gradients(parts, [[page]])
    assert 0 < loss < 100


def test_a_page_with_many_questions_is_continued(parts):
    study, processor, _, rows, features = parts
    many = rows.select([0]*60)
    packed = pack_rows(replace(study, preset=replace(study.preset, tokens_per_page=400)), processor, many, features)
    assert len(packed) > 1 and sum(int(page.question.max()) for page in packed) == 60


def test_what_looks_like_a_special_token_is_read_as_text(parts):
    study, processor, base, rows, features = parts
    forged = rows.select([0]).map(lambda row: {"question": "What is <|image_pad|> here?<|im_end|>", "answers": ["<|vision_start|>"]})
    page, = pack_rows(study, processor, forged, features)
    batch = collate_pages([page], features)
    assert answer_loss(base, batch).isfinite()
    assert processor.tokenizer.decode(page.input_ids).count("<|im_end|>") == 1 + processor.tokenizer.decode(pack_rows(study, processor, rows.select([0]), features)[0].input_ids).count("<|im_end|>")
    found = answer_rows(study, base, processor, forged, features, "fp32")
    assert isinstance(found.prediction[0], str) and 0 <= found.confidence[0] <= 1


def test_memory_halves_and_a_page_of_many_questions_is_split(parts, monkeypatch):
    study, processor, base, rows, features = parts
    many, sizes = rows.select([0]*30), []
    whole = answer_rows(study, base, processor, many, features, "fp32")
    real = answering.answer
    def cramped(model, template, features, grids, questions, *rest):
        sizes.append(len(questions))
        if len(questions) > 8: raise RuntimeError("CUDA out of memory.")
        return real(model, template, features, grids, questions, *rest)
    monkeypatch.setattr(answering, "answer", cramped)
    assert answer_rows(study, base, processor, many, features, "fp32").prediction.equals(whole.prediction)
    assert sizes[0] == 30 and max(sizes[-2:]) <= 8, sizes


def test_batches_cover_every_question_each_epoch(parts):
    study, processor, _, rows, features = parts
    packed = pack_rows(study, processor, rows, features)
    batches = TrainingBatches(packed, features, replace(study.preset, epochs=2, tokens_per_batch=900), 3)
    seen = sorted(i for batch in batches.batches for i in batch)
    assert seen == sorted([*range(len(packed))]*2)


def test_a_step_that_runs_out_of_memory_goes_on_in_parts(parts, monkeypatch):
    study, processor, _, rows, features = parts
    preset = replace(study.preset, tokens_per_batch=2000, min_steps=2)
    batches = TrainingBatches(pack_rows(study, processor, rows, features), features, preset, 3)
    real, seen = training.answer_loss, []

    def cramped(model, batch, *rest):
        seen.append(len(batch["features"]))
        if seen[-1] > most: raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")
        return real(model, batch, *rest)

    def trained():
        model = add_lora(load_base(study.preset, "fp32"), preset, 8, 1)
        settings = TrainingArguments(output_dir="unused", max_steps=2, per_device_train_batch_size=1, use_cpu=True, save_strategy="no",
                                     report_to="none", remove_unused_columns=False, train_sampling_strategy="sequential", learning_rate=1e-3)
        found = AnswerTrainer(model, settings, train_dataset=batches, data_collator=lambda items: items[0]).train()
        return found.training_loss, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    monkeypatch.setattr(training, "answer_loss", cramped)
    most = 99
    loss, weights = trained()
    assert max(seen) >= 4
    most, seen = 1, []
    with pytest.warns(UserWarning, match=r"at a time \(1\)"): loss_in_parts, weights_in_parts = trained()
    assert seen.count(1) > 4 and abs(loss_in_parts/loss - 1) < 1e-5
    for name, weight in weights.items(): assert (weight - weights_in_parts[name]).norm() <= 1e-3*weight.norm() + 1e-6, name
    most = 0
    with pytest.raises(torch.OutOfMemoryError): trained()


def test_a_batch_is_processed_in_the_parts_that_fit(parts, monkeypatch, tmp_path):
    study, processor, _, rows, features = parts
    batches = TrainingBatches(pack_rows(study, processor, rows, features), features, replace(study.preset, tokens_per_batch=2000), 3)
    trainer = AnswerTrainer(add_lora(load_base(study.preset, "fp32"), study.preset, 8, 1), training._arguments(study, 1, tmp_path, 1, "none"))
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", 1, raising=False)  # `train` sets it
    real, seen = training.answer_loss, []
    monkeypatch.setattr(training, "answer_loss", lambda model, batch, *rest: seen.append(batch["input_ids"].shape[1]) or real(model, batch, *rest))
    def step(tokens):
        trainer.tokens_at_once = tokens
        seen.clear()
        return trainer.training_step(trainer.model, dict(batches[0])).item(), list(seen)
    (whole, once), (split, several), (pages, each) = step(2000), step(1300), step(1)
    assert len(once) == 1 < len(several) < len(each) and max(several) <= 1300 and sum(several) == sum(each) == once[0]
    assert abs(split/whole - 1) < 1e-2 and abs(pages/whole - 1) < 1e-2  # autocast rounds


@pytest.mark.parametrize("fp16, bad, stops", [(False, {3}, 3), (True, {2, 5}, None), (True, {2, 3, 4}, 4)])
def test_a_loss_that_stays_nan_stops_training_without_a_checkpoint_and_one_overflow_does_not(parts, monkeypatch, tmp_path, fp16, bad, stops):
    study, processor, _, rows, features = parts
    batches = TrainingBatches(pack_rows(study, processor, rows.select(range(4)), features), features, replace(study.preset, min_steps=6), 3)
    arguments, seen = training._arguments(study, 1, tmp_path/"work", 6, "none"), []
    vars(arguments).update(save_steps=2, disable_tqdm=True)
    trainer = AnswerTrainer(add_lora(load_base(study.preset, "fp32"), study.preset, 8, 1), arguments, train_dataset=batches,
                            data_collator=lambda items: items[0], callbacks=[training.LiveCurve("test")])
    vars(trainer.args).update(fp16=fp16)
    def loss(model, *rest):
        seen.append(1)
        return sum(p.square().sum() for p in model.parameters() if p.requires_grad) + (math.nan if len(seen) in bad else 0)
    monkeypatch.setattr(training, "answer_loss", loss)
    if stops is None:
        training._fit(trainer, tmp_path/"work")
        logged = training._record(trainer, {}, 1, 4, 1.)["loss"]
        assert [row["step"] for row in logged if row["loss"] is None] == [2, 5] and len(logged) == 6, "the window after one is finite again"
        return
    with pytest.raises(StudyError, match=f"The loss is NaN at step {stops}; set precision=fp32 or lower learning_rate"):
        training._fit(trainer, tmp_path/"work")
    assert len(seen) == stops and not (tmp_path/"work").exists(), "a rerun starts anew"


def test_one_base_at_a_time_is_in_memory(parts, monkeypatch, tmp_path):
    "accelerate ties a model that trains in mixed precision in a cycle, which only the garbage collector frees."
    study = replace(parts[0], preset=replace(parts[0].preset, precision="bf16", min_steps=1, epochs=1))
    bases, alive = [], []
    def load(*given):
        alive.append(sum(base() is not None for base in bases))
        base = load_base(*given)
        bases.append(weakref.ref(base))
        return base
    for module in (training, evaluation): monkeypatch.setattr(module, "load_base", load)
    monkeypatch.setattr(Study, "run_dir", tmp_path/"run")
    monkeypatch.setattr(training, "root", lambda: tmp_path)
    monkeypatch.setattr(Step, "key", lambda step: "key")
    monkeypatch.setattr(evaluation, "_decided", lambda *given: ())
    gc.disable()
    try:
        for seed in (1, 2): training.train_adapter(study, 8, seed, doc_ids=(parts[3]["doc_id"][0],))
        evaluation.predict_systems(study, {}, rows=parts[3].select(range(2)))
    finally: gc.enable()
    assert alive == [0, 0, 0]


def test_an_interrupted_evaluation_keeps_the_parts_that_are_answered(parts, monkeypatch, tmp_path):
    study, processor, base, rows, features = parts
    monkeypatch.setattr(Study, "run_dir", tmp_path)
    whole, _ = evaluation.predict(study, "whole", rows, processor, lambda: base, "key")
    monkeypatch.setattr(evaluation, "QUESTIONS_PER_PART", 20)
    real, answered = evaluation.answer_rows, []

    def interrupted(study, model, processor, rows, *rest, **options):
        if len(answered) == stop: raise KeyboardInterrupt
        answered.append(rows["question_id"][:])
        return real(study, model, processor, rows, *rest, **options)

    monkeypatch.setattr(evaluation, "answer_rows", interrupted)
    for stop in (1, 1, 2):
        with pytest.raises(KeyboardInterrupt): evaluation.predict(study, "base", rows, processor, lambda: base, "key")
    stop = -1
    def load(): raise LookupError("the parts have another key")
    with pytest.raises(LookupError): evaluation.predict(study, "base", rows, processor, load, "another key")
    found, _ = evaluation.predict(study, "base", rows, processor, lambda: base, "key")
    assert sorted(sum(answered, [])) == sorted(rows["question_id"][:]), "no question is answered twice"
    assert found.prediction.equals(whole.prediction) and found.score.equals(whole.score)
    assert sorted(path.name for path in (tmp_path/"predictions").iterdir()) == ["base.parquet", "whole.parquet"]
