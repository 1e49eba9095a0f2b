"The nano base: its size, and a training run that goes on from any interruption to the same bits."
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers.modeling_outputs import BaseModelOutputWithPooling

from docvlm.model import load_base
from docvlm.engine.packing import chat_template, collate_pages, pack_pages
from docvlm.nano.batches import PracticeBatches, Recipe, Stage, pack_questions, documents_per_part, recipe_for
from docvlm.nano.model import answer_losses, answer_weights, build_model, build_processor, embed_stills, see, watched
from docvlm.nano.pretraining import pretrain
from docvlm.pages.rendering import SEEN_FONTS, UNSEEN_FONTS
from docvlm.presets import get_preset

ROOT = Path(__file__).resolve().parent.parent
TINY = Recipe(families=tuple(SEEN_FONTS), held_out_families=tuple(UNSEEN_FONTS), patches_per_batch=256, tokens_per_batch=1600, steps_per_round=2,
              stages=(Stage("read", 3, (1.0, 0.1), ((4, 2),)), Stage("look up", 3, (0.5, 0.0), ((6, 6),), 1.0, 0.5, 0.0, (1.0, 0.0))))


def weights(folder):
    "The tensors of a checkpoint: model and optimizers."
    with safe_open(folder/"checkpoint.safetensors", "pt") as file: return {key: file.get_tensor(key) for key in file.keys()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A run without interruption."
    folder = tmp_path_factory.mktemp("whole")
    _, log = pretrain(folder, TINY, held_out=1)
    return folder, log


def test_an_interrupted_run_goes_on_to_the_same_bits(whole, tmp_path):
    folder, log = whole
    assert [(row["stage"], row["step"]) for row in log] == [("read", 2), ("read", 3), ("look up", 2), ("look up", 3)]
    for _ in log: _, stopped = pretrain(tmp_path, TINY, rounds=1, held_out=1)
    expected, found = weights(folder), weights(tmp_path)
    assert set(expected) == set(found) and all(torch.equal(expected[key], found[key]) for key in expected)
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in log] == [{k: v for k, v in row.items() if k != "seconds"} for row in stopped]


def test_a_killed_run_goes_on_to_the_same_bits(whole, tmp_path):
    "Killed in the middle of a round, right after a checkpoint."
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from docvlm.nano import pretraining
from tests.test_nano import TINY
if __name__ == "__main__":
    pretraining.SAVE_S, save = 0, pretraining.save_state
    def killed(path, model, optimizers, progress):
        save(path, model, optimizers, progress)
        if (progress["stage"], progress["step"]) == (1, 1): os.kill(os.getpid(), signal.SIGKILL)
    pretraining.save_state = killed
    pretraining.pretrain({str(tmp_path)!r}, TINY, held_out=1)
"""
    (tmp_path/"run.py").write_text(code)
    assert subprocess.run([sys.executable, tmp_path/"run.py"], cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    pretrain(tmp_path, TINY, held_out=1)
    expected, found = weights(whole[0]), weights(tmp_path)
    assert set(expected) == set(found) and all(torch.equal(expected[key], found[key]) for key in expected)
    assert not list(tmp_path.glob(".*partial"))


def test_what_lies_behind_a_checkpoint_is_settled(whole, tmp_path):
    folder, log = whole
    with pytest.raises(ValueError, match="other learning_rate"): pretrain(folder, replace(TINY, learning_rate=1.0))
    with pytest.raises(ValueError, match="other stages"): pretrain(folder, replace(TINY, stages=(replace(TINY.stages[0], steps=2), TINY.stages[1])))
    (tmp_path/"checkpoint.safetensors").write_bytes((folder/"checkpoint.safetensors").read_bytes())
    longer = replace(TINY, stages=(TINY.stages[0], replace(TINY.stages[1], steps=4), replace(TINY.stages[1], name="mix", steps=1)))
    _, drawn_out = pretrain(tmp_path, longer, held_out=1)
    assert [(row["stage"], row["step"]) for row in drawn_out[len(log):]] == [("look up", 4), ("mix", 1)]


def test_a_batch_is_decided_by_seed_stage_and_step():
    processor = build_processor()
    draw = lambda recipe, stage, step: PracticeBatches(recipe, stage, processor)[step]
    for stage in (0, 1):
        ours, again = draw(TINY, stage, 1), draw(TINY, stage, 1)
        assert all(torch.equal(a[key], b[key]) for a, b in zip(ours, again) for key in a)
        other = [draw(replace(TINY, seed=1), stage, 1), draw(TINY, stage, 2)]
        assert all(str(batch[0]["targets"].nonzero().tolist()) != str(ours[0]["targets"].nonzero().tolist()) for batch in other)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_batch_of_the_recipe_fits_its_limits(device):
    recipe = recipe_for(device)
    assert len(recipe.stages) == 4 and recipe.stages[-1].rate[1] == 0
    for stage in recipe.stages:
        for columns, rows in stage.sizes:
            for asks, typed in ((False, False), (True, False), (True, True)):
                pages = recipe.parts*documents_per_part(recipe, (columns, rows), asks, typed)
                assert typed or pages == recipe.parts or 4*columns*rows*pages <= recipe.patches_per_batch
                assert not asks or pages == recipe.parts or pages*columns*rows <= recipe.tokens_per_batch


def test_the_base_stays_small():
    model = build_model(build_processor(), 0)
    count = sum(p.numel() for p in model.parameters())
    assert count <= 15_000_000 and 2*count <= 30_000_000


def test_the_shipped_base_is_opened_with_its_own_sizes():
    "Whatever sizes the next base will have."
    config = json.loads((ROOT/"data/nano/config.json").read_text())
    model, pixels = load_base(get_preset("nano"), "fp32", "cpu"), torch.randint(0, 256, (2, 56, 84, 3), dtype=torch.uint8)
    assert model.config.vision_config.embed_dim == config["vision_config"]["embed_dim"]
    with torch.no_grad():
        plain = see(model, pixels)
        embed_stills(model)
        assert torch.allclose(see(model, pixels).pooler_output, plain.pooler_output, atol=1e-3)


def test_each_answer_s_first_character_weighs_more():
    labels = torch.tensor([[5, 6, -100, 7, -100], [-100, 8, 9, 9, -100]])
    assert answer_weights(labels).tolist() == [4, 1, 4, 4, 1, 1]


@pytest.mark.parametrize("pages", [1, 2])
def test_questions_side_by_side_get_the_losses_and_gradients_of_the_block_mask(pages):
    processor = build_processor()
    asked = [[("Total?", "12.50", 0, 0), ("Who signed it?", "Ann of Kent", 5, pages - 1)], [("How many rows?", "3", -1, 0)],
             [("a", "b", 0, 0), ("What is the sum of all of them?", "1,234", 2, pages - 1), ("Date", "4 May", 1, 0)]]
    written = [[[(char, 5 + 9*i, 20) for i, char in enumerate("12.50AnnofKentBbcdef")]]*pages]*3
    batch, model = pack_questions(asked, written, (6, 4), processor), build_model(processor, 0)
    tokens = torch.randn(3*24*pages, model.config.text_config.hidden_size)
    with watched(model): loss, pointing, _ = answer_losses(model, batch, tokens)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    encode, template = processor.tokenizer.encode, chat_template(processor)
    row = collate_pages([pack_pages(template, [(1, 8, 12)]*pages, [encode(q) for q, *_ in some],
                                    [encode(a) for _, a, *_ in some]) for some in asked])
    labels, vision = row.pop("labels"), BaseModelOutputWithPooling(pooler_output=tuple(tokens.chunk(3)))
    logits = model(**row, logits_to_keep=labels != -100, use_cache=False, mm_encoder_outputs={"image": vision}).logits
    weight = answer_weights(labels)
    expected = (torch.nn.functional.cross_entropy(logits, labels[labels != -100], reduction="none")*weight).sum()/weight.sum()
    expected.backward()
    assert abs(loss.item()/expected.item() - 1) < 1e-5 and pointing > 0 and gradients
    for name, gradient in gradients.items():
        wanted = dict(model.named_parameters())[name].grad
        assert (gradient - wanted).norm() <= 1e-4*wanted.norm() + 1e-6, name
