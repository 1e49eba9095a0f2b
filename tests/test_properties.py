"What must hold for any input: metrics, intervals, packing, masks and the contract of results files."
import json
import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from docvlm import steps
from docvlm.files import digest_of, read_json, write_json
from docvlm.core import open_study
from docvlm.analysis.metrics import BENCHMARK_METRICS, METRICS, anls, mean_ci, paired_delta, parse_number, score
from docvlm.engine import attention
from docvlm.engine.attention import text_attention
from docvlm.engine.packing import Template, block_mask, collate_pages, pack_pages, rope_positions
from docvlm.steps import PROVENANCE, Step, content_digest
from docvlm.provenance import leaf_values

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("repeatable")
text = st.text(max_size=30)
answers = st.lists(text, min_size=1, max_size=4)
json_values = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text,
                           lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=12)


# metrics

@given(st.sampled_from(sorted(METRICS)), text, answers)
def test_scores_lie_between_0_and_1_and_more_targets_never_hurt(metric, prediction, targets):
    values = [METRICS[metric](prediction, targets[:n]) for n in range(1, len(targets) + 1)]
    assert all(0 <= value <= 1 for value in values) and values == sorted(values)
    assert METRICS[metric](prediction, targets[::-1]) == values[-1]


@given(st.sampled_from(sorted(METRICS)), text)
def test_the_right_answer_scores_1(metric, answer):
    answer = answer.strip()
    assert METRICS[metric](answer, [answer]) == 1


@given(text, text)
def test_anls_is_symmetric_and_knows_no_white_space(a, b):
    assert anls(a, [b]) == anls(b, [a]) == anls(f"  {a}\n", [b.replace(" ", "\t ")])


@given(text, text)
def test_anls_is_1_only_for_equal_texts_and_never_between_0_and_one_half(a, b):
    value = anls(a, [b])
    assert value == 0 or value >= .5
    assert (value == 1) == (a.lower().split() == b.lower().split())


@given(st.integers(-10**9, 10**9), st.sampled_from(("{}", "{:,}", "${:,}", "{}.00", "{} %", "{}%", "+{}")))
def test_a_number_is_read_back_as_it_was_written(number, form):
    if form == "+{}": number = abs(number)
    assert parse_number(form.format(number)) == pytest.approx(number/100 if "%" in form else number)


@given(st.sampled_from(sorted(BENCHMARK_METRICS)), text, text)
def test_score_is_the_benchmark_s_metric(benchmark, prediction, target):
    assert score(benchmark, prediction, [target]) == METRICS[BENCHMARK_METRICS[benchmark]](prediction, [target])


# intervals

@st.composite
def scored(draw):
    pages = draw(st.lists(st.integers(1, 3), min_size=2, max_size=6))
    clusters = np.repeat(np.arange(len(pages)), pages)
    row = st.lists(st.sampled_from((0, .5, 1)), min_size=len(clusters), max_size=len(clusters))
    return np.array(draw(row), float), np.array(draw(st.lists(row, min_size=1, max_size=3)), float), clusters


@settings(max_examples=30)
@given(scored())
def test_intervals_are_ordered_within_bounds_and_the_same_each_time(case):
    base, ours, clusters = case
    found = paired_delta(base, ours, clusters, resamples=60)
    low, high = found["ci95"]
    assert -1 <= low <= high <= 1 and 0 < found["p_value"] <= 1 and found == paired_delta(base, ours, clusters, resamples=60)
    assert found["value"] == pytest.approx(ours.mean() - base.mean())
    swapped = paired_delta(ours.mean(0), base, clusters, resamples=60)
    assert swapped["value"] == pytest.approx(-found["value"]) and swapped["p_value"] == pytest.approx(found["p_value"], abs=.15)
    whole = mean_ci(ours, clusters, resamples=60)
    assert 0 <= whole["ci95"][0] <= whole["ci95"][1] <= 1 and whole["value"] == pytest.approx(ours.mean())


# packing and masks

TEMPLATE = Template(before=(1, 2), between=(3, 2), after=(3,), closing=(4, 5), image_token_id=9, end_token_id=6)
tokens = st.lists(st.integers(10, 50), min_size=1, max_size=4)


@st.composite
def packed_pages(draw):
    pages = []
    for number in range(draw(st.integers(1, 4))):
        grid = (1, 2*draw(st.integers(1, 3)), 2*draw(st.integers(1, 3)))
        count = draw(st.integers(1, 3))
        pages.append(pack_pages(TEMPLATE, [grid], [draw(tokens) for _ in range(count)], [draw(tokens) for _ in range(count)], page_keys=(str(number),)))
    return pages


@settings(max_examples=40)
@given(packed_pages())
def test_a_row_holds_every_token_once_and_each_token_sees_what_it_may(pages):
    batch = collate_pages(pages)
    for name in ("input_ids", "labels"): assert batch[name].tolist() == [[v for page in pages for v in getattr(page, name).tolist()]]
    assert torch.equal(batch["position_ids"][:, 0], torch.cat([page.position_ids for page in pages], 1))
    for page, mask in zip(pages, batch["attention_mask"]["full_attention"], strict=True):
        question, first = page.question.tolist(), (page.question == 0).sum().item()
        for i, seen in enumerate(mask[0, 0].tolist(), first):
            assert seen == [j <= i and question[j] in (0, question[i]) for j in range(len(page))]


@settings(max_examples=20)
@given(packed_pages())
def test_pages_of_a_row_are_attended_as_if_alone(pages):
    layer, width = SimpleNamespace(num_key_value_groups=2, training=False, is_causal=True), 4
    query, key, value = (torch.randn(1, heads, sum(map(len, pages)), width) for heads in (4, 2, 2))
    def attend(matmuls, *given):
        with patch.object(attention, "uses_matmuls", lambda *_: matmuls): return text_attention(layer, *given, .5)[0]
    for matmuls in (True, False):
        row = attend(matmuls, query, key, value, collate_pages(pages)["attention_mask"]["full_attention"])
        start = 0
        for page in pages:
            span = slice(start, start := start + len(page))
            mask = block_mask(page.question[None])
            alone = attend(True, query[:, :, span], key[:, :, span], value[:, :, span], mask)
            torch.testing.assert_close(row[:, span], alone)


@given(packed_pages())
def test_positions_restart_after_the_page_and_labels_are_answers_only(pages):
    for page in pages:
        after = int(rope_positions(TEMPLATE, page.grids).max()) + 1
        for number in range(1, int(page.question.max()) + 1):
            own = page.question == number
            assert page.position_ids[:, own].tolist() == [list(range(after, after + int(own.sum())))]*3
            labels = page.labels[own].tolist()
            asked = labels.index(next(label for label in labels if label != -100))
            assert set(labels[:asked]) <= {-100} and -100 not in labels[asked:] and labels[-1] == TEMPLATE.end_token_id
        assert set(page.labels[page.question == 0].tolist()) == {-100}


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=12))
def test_the_mask_is_its_definition(cells):
    question, first = torch.tensor([cells]), len(cells)//2
    mask = block_mask(question)[0, 0]
    assert torch.equal(block_mask(question, first)[0, 0], mask[first:])
    for i, number in enumerate(cells):
        for j, other in enumerate(cells): assert mask[i, j] == (j <= i and other in (0, number))


# results files

@given(json_values)
def test_a_result_is_read_back_as_it_was_written(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("json", numbered=True)
    value = {"result": value}
    assert read_json(write_json(folder/"a.json", value)) == value
    assert [file.name for file in folder.iterdir()] == ["a.json"], "something else was left behind"


@given(json_values)
def test_digests_follow_content_only(value):
    again = json.loads(json.dumps(value))
    assert digest_of(value) == digest_of(again) and digest_of({"a": 1, "b": value}) == digest_of({"b": again, "a": 1})
    assert digest_of([value]) != digest_of([value, None])


@given(st.dictionaries(text.filter(lambda name: name not in PROVENANCE), json_values, max_size=4), st.sampled_from(PROVENANCE), json_values)
def test_what_a_step_found_does_not_depend_on_where_and_when(found, name, value):
    assert content_digest(found) == content_digest(found | {name: value})
    assert content_digest(found) != content_digest(found | {"another finding": value})


@given(json_values)
def test_the_leaves_are_all_that_a_result_holds(value):
    for path, leaf in leaf_values(value):
        found = value
        for key in path: found = found[int(key)] if isinstance(found, list) else found[key]
        assert found == leaf and not isinstance(leaf, (dict, list))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {1, 2}, b"bytes", Path("/"), np.float32(1)], ids=repr)
def test_what_is_no_json_is_refused_and_the_old_file_stays(tmp_path, value):
    path = write_json(tmp_path/"a.json", {"old": 1})
    with pytest.raises((ValueError, TypeError)): write_json(path, {"new": value})
    assert read_json(path) == {"old": 1} and [file.name for file in tmp_path.iterdir()] == ["a.json"]


# the contract of a step, whatever the clock says

@pytest.fixture
def step(tmp_path, monkeypatch):
    "The data step of the smoke study, filed elsewhere."
    monkeypatch.setattr(Step, "path", property(lambda self: tmp_path/f"{self.name}.json"))
    return Step(open_study("smoke"), "data")


def test_a_result_holds_its_origin_and_runs_once(step):
    calls = []
    result = step.run(lambda: calls.append(1) or {"pages": 3})
    assert step.run(lambda: calls.append(1)) == result == read_json(step.path) and len(calls) == 1
    assert set(result) == {*PROVENANCE, "pages"} and result["key"] == step.key() and step.state() == "fresh"


def test_a_clock_that_goes_backwards_changes_nothing(step, monkeypatch):
    import os
    class Backwards(datetime):
        @staticmethod
        def now(zone=None): return datetime(2001, 1, 1, tzinfo=timezone.utc) - timedelta(days=1)
    step.run(lambda: {"pages": 3})
    monkeypatch.setattr(steps, "datetime", Backwards)
    for moment in (0, 4_000_000_000):
        os.utime(step.path, (moment, moment))
        assert step.state() == "fresh"
    write_json(step.path, read_json(step.path) | {"started": "2099-01-01T00:00:00+00:00", "wall_s": -5.0})
    assert step.state() == "fresh" and step.run(lambda: 1/0)["pages"] == 3


def test_a_failing_step_leaves_no_result(step):
    with pytest.raises(ZeroDivisionError): step.run(lambda: 1/0)
    assert not step.path.exists() and step.state() == "no result yet"


def test_another_preset_is_another_key(step):
    study = step.study
    other = Step(replace(study, preset=replace(study.preset, data_seed=8)), "data")
    assert other.key() != step.key() == Step(study, "data").key()
