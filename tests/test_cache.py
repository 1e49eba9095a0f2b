"The page cache under bad conditions, and pages of unusual size: a clear error or the right result, never a wrong feature."
import os
import resource
import shutil
import signal
import time
from collections import namedtuple
from dataclasses import replace

import pytest
import torch

from docvlm.engine.answering import answer_rows
from docvlm.files import StudyError
from docvlm.core import open_study
from docvlm.data import load_splits
from docvlm.model import load_base, load_processor
from docvlm.bench.throughput import ScratchStudy, changed, one_question_a_page
from docvlm.engine.features import PageFeatures, cache_features
from docvlm.inputs.images import pages_of
from docvlm.training import TrainingBatches, answer_loss, pack_rows

FEATURE = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.fixture
def study(tmp_path):
    "The smoke study on small pages, with a cache of its own."
    preset = replace(open_study("smoke").preset, max_pixels=64*28*28, max_new_tokens=dict.fromkeys(("docvqa", "chartqa", "infovqa"), 6))
    return ScratchStudy(preset, folder=tmp_path/"cache")


@pytest.fixture(scope="module")
def rows(): return load_splits(open_study("smoke"))["train"]


@pytest.fixture(scope="module")
def base(): return load_base(open_study("smoke").preset, "fp32")


def fill(study, base, rows): return cache_features(study, base, load_processor(study.preset), rows)


def test_a_full_disk_is_named_and_leaves_nothing_behind(study):
    features, limits = PageFeatures(study), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StudyError, match="free space"): features.put("ab" * 8, FEATURE, (1, 16, 16))
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert features.get("ab" * 8) is None
    features.put("ab" * 8, FEATURE, (1, 16, 16))
    found, grid = features.get("ab" * 8)
    assert torch.equal(found, FEATURE) and grid == (1, 16, 16)


def test_too_little_room_is_said_before_vision_runs(study, base, rows, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(StudyError, match=r"page features of 2 pages.*max_pixels"): fill(study, base, rows.select(range(6)))
    assert not list(study.cache_dir.rglob("*.safetensors"))


def test_a_cache_folder_that_cannot_be_made_is_named(study):
    study.cache_dir.write_text("a file stands where the folder should be")
    with pytest.raises(StudyError, match="Cannot write"): PageFeatures(study).put("ab" * 8, FEATURE, (1, 16, 16))


def in_child(work):
    "Fork, work in the child, and give its process id."
    if child := os.fork(): return child
    try: work()
    finally: os._exit(0)


def test_a_killed_writer_leaves_whole_files_only(study):
    features, deadline = PageFeatures(study), time.monotonic() + 60
    written = lambda: list(features.folder.rglob("*.safetensors"))
    child = in_child(lambda: [features.put(f"{n:016x}", FEATURE, (1, 16, 16)) for n in range(10**6)])
    while len(written()) < 5 and time.monotonic() < deadline: time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(written()) >= 5
    for path in written(): assert torch.equal(features.get(path.stem)[0], FEATURE), path.name


def test_two_writers_of_the_same_pages_do_not_disturb_each_other(study):
    features, keys = PageFeatures(study), [f"{n:016x}" for n in range(40)]
    children = [in_child(lambda: [features.put(key, FEATURE, (1, 16, 16)) for key in keys]) for _ in range(2)]
    while any(os.waitpid(child, os.WNOHANG)[0] == 0 for child in children[:1]):
        for key in keys:
            if found := features.get(key): assert torch.equal(found[0], FEATURE), "a reader meanwhile sees whole files"
    os.waitpid(children[1], 0)
    assert all(torch.equal(features.get(key)[0], FEATURE) for key in keys)
    assert len([file for file in features.folder.rglob("*") if file.is_file()]) == len(keys), "and nothing else is left"


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:5], lambda b: b[:100], lambda b: b[:-1], lambda b: b + b"\0",
                                    lambda b: bytes(100) + b[100:], lambda b: b"\xff"*8 + b[8:]],
                         ids=["empty", "5 bytes", "100 bytes", "one byte short", "one byte more", "zeros in front", "absurd header"])
def test_a_damaged_file_does_not_count(study, damage):
    features = PageFeatures(study)
    features.put("ab" * 8, FEATURE, (1, 16, 16))
    path, = features.folder.rglob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    assert features.get("ab" * 8) is None


def test_damaged_pages_are_computed_again(study, base, rows):
    some = rows.select(range(8))
    features = fill(study, base, some)
    before = {page["keys"][0]: features.get(page["keys"][0])[0].clone() for page in pages_of(some).values()}
    for path in features.folder.rglob("*.safetensors"): path.write_bytes(path.read_bytes()[:200])
    after = fill(study, base, some)
    assert all(torch.equal(after.get(key)[0], feature) for key, feature in before.items())


@pytest.mark.parametrize("change", [{"max_pixels": 32*28*28}, {"min_pixels": 4*28*28}, {"base": "Qwen/Qwen2-VL-2B-Instruct"}], ids=str)
def test_features_of_another_model_or_pixel_budget_are_not_taken(study, change):
    PageFeatures(study).put("ab" * 8, FEATURE, (1, 16, 16))
    assert PageFeatures(changed(study, **change)).get("ab" * 8) is None
    assert PageFeatures(study).get("ab" * 8) is not None


def test_a_lower_pixel_budget_gives_fewer_tokens(study, base, rows):
    some = rows.select(range(3))
    key = next(iter(pages_of(some).values()))["keys"][0]
    many, few = (len(fill(s, base, some).get(key)[0]) for s in (study, changed(study, max_pixels=32*28*28)))
    assert few <= 32 < many <= 64


def test_pages_of_one_question_and_of_sixty_are_answered_alike(study, base, rows):
    pages = list(pages_of(rows).values())
    crowded = rows.select([pages[0]["rows"][0]]*60 + [pages[1]["rows"][0]])
    questions = [rows[i % len(rows)]["question"] for i in range(60)] + [rows[pages[1]["rows"][0]]["question"]]
    crowded = crowded.remove_columns("question").add_column("question", questions)
    processor, features = load_processor(study.preset), fill(study, base, crowded)
    together = answer_rows(study, base, processor, crowded, features, "fp32").prediction.tolist()
    assert together == answer_rows(study, base, processor, one_question_a_page(crowded), features, "fp32").prediction.tolist()


def test_pages_larger_than_every_budget_train_alike(study, base, rows):
    some, processor = rows.select(range(8)), load_processor(study.preset)
    features = fill(study, base, some)
    def loss(study):
        batches = TrainingBatches(pack_rows(study, processor, some, features), features, study.preset.one_pass(), 0)
        with torch.no_grad(): return len(batches), sum(answer_loss(base, batch, 1).item() for batch in batches)
    (few, whole), (many, tight) = loss(study), loss(changed(study, tokens_per_page=8, tokens_per_batch=8))
    assert many > few and abs(tight/whole - 1) < 1e-5
