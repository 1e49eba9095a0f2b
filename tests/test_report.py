"The report: escaped, complete, equal to its results files, refusing stale ones."
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from PIL import Image

import docvlm.core as core
from docvlm import files
from docvlm.paper import readme
from docvlm.failures import SUSPECTS_SHOWN
from docvlm.paper.figures import FIGURES
from docvlm import report, steps
from docvlm.paper.tables import percent, points

REPO = Path(__file__).parents[1]
HOSTILE = ["<script>alert('x')</script>", "</td></table><img src=x onerror=alert(1)>", "**bold** [link](javascript:alert(1)) | cell",
           "{{ 7*7 }} {% include '/etc/passwd' %}", "W" * 3000, "\u202eright to left\u202c \u0634\u0643\u0631\u0627", "`code` $x^2$ @hu2022lora",
           "::: {.div}\n# heading\n:::", "\\input{x} #import \"x\"", "", "\ud800 \x00 \x1b[31m", "a\n\n| b | c |\n|---|---|"]


def cell(base, gain, width=.04):
    "A comparison whose interval is `width` to either side of the gain."
    around = lambda value: {"value": value, "ci95": [value - width, value + width]}
    return {"metric": "anls", "questions": 412, "images": 64, "baseline": around(base), "delta": around(gain) | {"p_value": .0005},
            "ours": around(base + gain) | {"per_seed": {"42": base + gain - .01, "43": base + gain + .01}}}


def fields(text):
    "Scores of fields, one of which is nowhere present; its names are what users write."
    rate = lambda value, ci95: {"value": value, "ci95": ci95, "precision": value, "recall": value}
    none, some = rate(None, None), {key: rate(.6, [.5, .7]) for key in ("baseline", "ours")} | {"delta": {"value": .1, "ci95": [-.1, .2]}}
    part = lambda present, f1: {"questions": 20, "documents": 20, "present": present, "exact": cell(.3, .2), "anls": cell(.4, .2), "f1": f1}
    empty = {"baseline": none, "ours": none, "delta": {"value": None, "ci95": None}}
    return {"by_field": {text(0): part(18, some), text(1) + " ": part(0, empty)}, "all": part(18, some),
            "documents": {"documents": 20, "right": cell(.1, .2), "anls_star": cell(.4, .2)}}


def suspect_labels(images, text):
    "Two lists; the second is longer than the pictures that it has."
    entry = lambda n: {"question_id": f"q{n}", "doc_id": text(n), "page": 1 + n % 3, "field": text(n + 1), "question": text(n), "label": text(n + 1),
                       "answer": text(n + 2), "base": text(n + 3), "confidence": .9, "image": images[n % len(images)] if n < SUSPECTS_SHOWN else None}
    return {"test": {"questions": 80, "listed": [entry(n) for n in range(2)]}, "training": {"questions": 40, "listed": [entry(n) for n in range(23)]},
            "training_questions": 90, "seeds": 2, "detection": {"share": .05, "plantings": 10, "planted": 4., "listed": 5.5, "precision": .5, "recall": .6,
                                                                "precision_shown": .55}}


def synthetic_results(images, texts=("42.10",)):
    "Results of every step, with the texts where models and documents speak."
    text = lambda number: texts[number % len(texts)]
    kinds = ["misread characters", "wrong field", "wrong row or column", "arithmetic", "not on the page", "truncated"]
    share = lambda value: {"share": value, "ci95": [value - .02, value + .02], "count": round(900 * value)}
    split = lambda pages: {"pages": pages, "questions": 6 * pages, "unseen_page_share": .4,
                           "by_benchmark": {b: {"pages": pages // 3, "questions": 2 * pages} for b in ("docvqa", "chartqa", "infovqa")},
                           "by_document_type": {t: {"pages": pages // 3, "questions": 2 * pages} for t in ("forms", "tables", "bar charts")},
                           "by_language": {text(n): {"pages": 2, "questions": 4} for n in range(2)}}
    seeds = {str(s): {"loss": [{"step": n, "loss": 2.5 / (1 + n / 20) + .02 * ((n * s) % 7), "learning_rate": 1e-3} for n in range(1, 160)],
                      "questions_per_s": 31.2, "train_s": 301.5, "peak_memory_bytes": 2**31, "adapter_digest": "0f" * 8,
                      "adapter": f"data/runs/nano/adapters/lora-r16-seed{s}"} for s in (42, 43)}
    rank = lambda r, gain: {"lora_rank": r, "lora_alpha": 2 * r, "trainable_parameters": 36864 * r, "trainable_percent": .47 * r, "seed": 42,
                            "precision": "bf16", "train_s": 300 + r, **{b: {"value": .4 + gain + d, "ci95": [.37 + gain + d, .43 + gain + d]}
                                                   for b, d in (("docvqa", .1), ("chartqa", 0), ("infovqa", -.05))}}
    row = lambda precision, batch: {"device": "cpu", "precision": precision, "batch_size": batch, "image_tokens": 180,
                                    "ttft_ms": {"p50": 35. * batch, "p95": 41. * batch}, "peak_memory_bytes": 9e8, "kind": "measured",
                                    "latency_ms": {"p50": 80 * batch**.7, "p95": 99 * batch**.7}, "images_per_s": batch**.3 * 12,
                                    "cost_per_1000_images_usd": .0023, "price_source": "prices.csv"}
    return {
        "data": {"splits": {"train": split(500), "test": split(290)}, "skipped": [], "digest": {"test": "0f" * 8},
                 "leakage": {"exact": 0, "near": 1, "question": 0, "question_elsewhere": 17},
                 "sources": [{"name": text(0), "revision": "seed 7", "licence": "Apache-2.0", "samples": 4740, "type": text(1)}]},
        "training": {"model": {"base": "data/nano", "lora_rank": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj"],
                               "trainable_parameters": 589824, "total_parameters": 7523456, "trainable_percent": 7.84,
                               "vision_trainable_parameters": 0},
                     "setup": {"epochs": 3, "learning_rate": 2e-3, "schedule": "cosine", "pages_per_step": 5.8}, "seeds": seeds},
        "evaluation": {"protocol": "docvlm", "systems": ["base", "lora-r16-seed42", "lora-r16-seed43"],
                       "benchmarks": {"docvqa": cell(.31, .22), "chartqa": cell(.25, .011) | {"metric": "relaxed_accuracy"}, "infovqa": cell(.28, .13)},
                       "by_document_type": {name: cell(.3, gain) for name, gain in (
                           ("forms", .25), ("tables", .19), ("invoices", .28), ("letters", .08), ("bar", .03), ("pie", -.02),
                           ("charts, human questions", .5), ("infographics", .13))},
                       "by_language": {text(n) + str(n): cell(.3, .1) for n in range(2)}, "by_language_characters": {text(0): cell(.2, .1)},
                       "unknown_characters": {"characters": text(5) + "김", "in_question": 2, "in_answers": 3, "questions": 4, "of": 900} | {
                           name: {"unknown": {"base": .2, "ours": .1}, "known": {"base": None, "ours": .8}} for name in ("confidence", "score")},
                       "by_template": {g: {"docvqa": cell(.3, .2), "chartqa": cell(.2, .01)} for g in ("seen", "unseen")},
                       "chartqa_strict": cell(.22, .01) | {"metric": "relaxed_accuracy"},
                       "reliability": {k: [{"confidence": n / 10 + .05, "score": (n / 10 + .05)**p, "questions": 20 + 10 * n}
                                           for n in range(10)] for k, p in (("base", 2), ("ours", 1.3))},
                       "by_answer_length": [{"characters": c, "questions": 100, "baseline": b, "ours": b + .2}
                                            for c, b in (("1-4", .5), ("5-8", .4), ("9-16", .3), ("17+", .1))],
                       "by_text_height": [{"text_height_px": h, "questions": 90, "baseline": h / 60, "ours": h / 40} for h in range(10, 22)],
                       "comparison": [{"model": m, "size": "7.5M", "benchmark": b, "value": v, "kind": "measured", "source": "this study"}
                                      for m, v in (("nano base", .3), ("nano, fine-tuned", .5)) for b in ("docvqa", "chartqa", "infovqa")],
                       "against_published": [{"benchmark": "docvqa", "split": "validation", "value": .31, "published": .9, "difference_points": None,
                                              "protocol": "docvlm", "published_protocol": "own", "source": "a paper",
                                              "flag": "another protocol"}],
                       "fields": fields(text), "training_sample": {"questions": 40, "of": 90, "systems": ["base@train"]},
                       "throughput": {"base": {"questions_per_s": 21.}, "lora-r16-seed42": {"questions_per_s": 19.5}}},
        "ablation": {"rows": [rank(16, 0), rank(32, .02), rank(64, .025)],
                     "quantized": [rank(16, -.01) | {"precision": "nf4", "evaluated_on": on} for on in ("nf4", "bf16")]},
        "failures": {"types": [{"name": k, "before": share(.25 - n * .04), "after": share(.1 - n * .01), "examples": []}
                               for n, k in enumerate(kinds)], "correct": {"before": .3, "after": .55},
                     "transitions": {"fixed": {"value": .3, "ci95": [.2, .4]}, "broken": {"value": .05, "ci95": [.0, .1]}}, "what_helps": [text(2)],
                     "by_benchmark": {b: [{"name": "correct", "before": .3, "after": .55}] for b in ("docvqa", "chartqa", "infovqa")},
                     "gallery": [{"question_id": f"q{n}", "doc_id": "d", "benchmark": "docvqa", "doc_type": ("forms", "bar")[n % 2],
                                  "question": text(n), "target": text(n + 1), "base": text(n + 2), "ours": text(n + 3),
                                  "error_before": kinds[n % 3], "error_after": ("correct", kinds[n % 4])[n % 2],
                                  "evidence": [10, 10, 60, 30] if n % 3 else None,
                                  "image": images[n % len(images)]} for n in range(12)],
                     "suspect_labels": suspect_labels(images, text)},
        "latency": {"rows": [row(p, b) for p in ("fp32", "bf16") for b in (1, 4, 16)], "notes": [text(3)]}}


@pytest.fixture
def study(tmp_path, monkeypatch):
    "A repository of its own: this one's paper and tables, and notebooks that say nothing."
    repo = tmp_path / "repo"
    shutil.copytree(REPO / "paper", repo / "paper")
    (repo / "nbs/bench").mkdir(parents=True)
    (repo / "data/runs/nano/adapters/lora-r16-seed42").mkdir(parents=True)
    shutil.copy(REPO / "settings.ini", repo)
    for path in (REPO / "data").glob("*.csv"): shutil.copy(path, repo / "data")
    for notebook, *_ in steps.STEPS.values():
        (repo / f"nbs/{notebook}.ipynb").write_text(json.dumps({"cells": []}))
    shutil.copy(REPO / "nbs/index.ipynb", repo / "nbs")
    Image.new("RGB", (120, 170), "white").save(repo / "page.png")
    monkeypatch.chdir(repo)
    monkeypatch.setattr(steps, "environment", lambda: {"python": "3.11", "cpu": "a CPU", "gpu": None, "torch": "2.14.1"})
    files.root.cache_clear()
    yield core.open_study("nano")
    files.root.cache_clear()


def fill(study, **options):
    "Run every step on synthetic results; the results."
    results = json.loads(json.dumps(synthetic_results(["page.png"], **options), ensure_ascii=False).encode("utf-8", "replace"))
    for step in (s for s in steps.STEPS if s != "report"): study.step(step).run(lambda: results[step])
    return results


def html_of(study):
    values = report.report_values(study)
    template = (files.root() / "paper/template.md.j2").read_text()
    return report.to_html(report.render(template, html=True, **values), "Test")


class Reader(HTMLParser):
    "Collects what a browser would act on, and the first table."
    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.alts, self.table, self.cell = [], [], [], [], None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        assert not [name for name in attrs if name.startswith("on")], attrs
        self.sources += [attrs[name] for name in ("src", "srcset", "data") if attrs.get(name)]
        self.sources += [attrs["href"]] if tag == "link" else []
        if tag == "a": assert re.match(r"https?://|#", attrs["href"]), attrs
        if tag == "img": self.alts.append(attrs.get("alt"))
        if self.tags.count("table") == 1:
            if tag == "tr": self.table.append([])
            if tag in ("td", "th"): self.cell = ""

    def handle_data(self, data):
        if self.cell is not None: self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self.cell is not None:
            self.table[-1].append(self.cell.strip())
            self.cell = None


def test_html_equals_results(study):
    results = fill(study)
    reader = Reader()
    reader.feed(html_of(study))
    head, *rows = reader.table
    assert head == ["benchmark", "metric", "questions", "base", "fine-tuned", "difference", "95 % interval", "p"]
    for row, benchmark in zip(rows, ("docvqa", "chartqa", "infovqa"), strict=True):
        want = results["evaluation"]["benchmarks"][benchmark]
        low, high = want["delta"]["ci95"]
        assert row[2:] == ["412", percent(want["baseline"]["value"]), percent(want["ours"]["value"]), points(want["delta"]["value"]),
                           f"{points(low)} to {points(high)}", "< 0.001"]
    assert all(source.startswith("data:") for source in reader.sources) and all(reader.alts)
    assert reader.tags.count("script") == 1


def test_fields_and_suspect_labels_are_reported_where_they_are(study):
    fill(study)
    page = html_of(study)
    assert "By field" in page and "all fields right" in page and "Extraction by field" in page
    assert f"The first {SUSPECTS_SHOWN} of 23 training labels" in page and "finds 60.0 % of them" in page.replace("60.0 %", "60.0 %")
    assert "drawn at random from 90" in page and page.count('class="suspect"') == 2 + SUSPECTS_SHOWN and '"None"' not in page


def test_a_study_without_fields_and_an_empty_list_say_so(study):
    results = json.loads(json.dumps(synthetic_results(["page.png"])))
    del results["evaluation"]["fields"]
    suspects = results["failures"]["suspect_labels"]
    for split in ("test", "training"): suspects[split]["listed"] = []
    suspects["detection"] |= {"precision": None, "precision_shown": None, "recall": 0.}
    for step in (s for s in steps.STEPS if s != "report"): study.step(step).run(lambda: results[step])
    page = html_of(study)
    assert "By field" not in page and "The list stays empty" in page and "not measured %" not in page
    assert "0 of 80 test labels" in " ".join(page.split())


def on_one_page(cell):
    "The comparison as `evaluation.compare` gives it for a single page."
    alone = lambda part: part | {"ci95": None}
    return cell | {"images": 1, "baseline": alone(cell["baseline"]), "ours": alone(cell["ours"]), "delta": alone(cell["delta"]) | {"p_value": None}}


@pytest.mark.parametrize("alone", [("docvqa",), ("docvqa", "chartqa", "infovqa")])
def test_a_benchmark_on_one_page_keeps_its_row_and_says_so(study, monkeypatch, alone):
    results = synthetic_results(["page.png"])
    evaluation, ablation = results["evaluation"], results["ablation"]
    for name in alone:
        evaluation["benchmarks"][name] = on_one_page(evaluation["benchmarks"][name])
        for row in ablation["rows"] + ablation["quantized"]: row[name] = row[name] | {"ci95": None}
    for name in ("forms", "tables"): evaluation["by_document_type"][name] = on_one_page(evaluation["by_document_type"][name])
    monkeypatch.setattr(sys.modules[__name__], "synthetic_results", lambda images, **options: results)
    fill(study)
    reader = Reader()
    reader.feed(html_of(study))
    rows = {row[0]: row for row in reader.table[1:]}
    for name, shown in (("docvqa", "DocVQA"), ("chartqa", "ChartQA"), ("infovqa", "InfographicVQA")):
        assert (rows[shown][-2:] == ["one document: no interval", "no test"]) is (name in alone)
        assert percent(evaluation["benchmarks"][name]["ours"]["value"]) in rows[shown]
    practical, types, _ = [text for _, text in report.report_values(study)["answers"]]
    gain = practical.partition("Fine-tuning ")[2]
    assert gain.count("one document: no interval") == len(alone) and "(it needs two documents): DocVQA +22.0 points" in gain
    assert "most of all invoices (" in types and "forms" not in types, "a type on one page is no clear gain"


@pytest.fixture
def no_figures(monkeypatch):
    "Spare the time of drawing."
    monkeypatch.setattr(report, "draw_all", lambda study, results: dict.fromkeys(FIGURES))


def test_hostile_strings_are_shown_not_obeyed(study, no_figures):
    fill(study)
    plain = Reader()
    plain.feed(html_of(study))
    for step in (s for s in steps.STEPS if s != "report"): study.step(step).path.unlink()
    fill(study, texts=HOSTILE)
    hostile, page = Reader(), html_of(study)
    hostile.feed(page)
    for tag in ("script", "img", "table", "h1", "h2", "h3", "iframe", "a", "code"):
        assert hostile.tags.count(tag) == plain.tags.count(tag), tag
    assert "&lt;script&gt;alert(" in page and "{{ 7*7 }}" in page and "(3,000 characters)" in page
    assert "\u202e" not in page and "\x1b" not in page


def test_a_system_that_is_left_out_is_named_and_breaks_nothing(study, no_figures, monkeypatch):
    fill(study)
    monkeypatch.setattr(report, "current_systems", lambda study, results: ({}, ["gpt-4o-mini"]))
    page = html_of(study)
    assert "gpt-4o-mini is not shown: it was measured on other questions" in page and ":::" not in page


def test_missing_field_is_an_error(study, no_figures):
    results = synthetic_results(["page.png"])
    del results["failures"]["what_helps"]
    for step in (s for s in steps.STEPS if s != "report"): study.step(step).run(lambda: results[step])
    with pytest.raises(UndefinedError, match="what_helps"): html_of(study)


def refusal(study):
    with pytest.raises(core.StudyError) as caught: report.build_report(study)
    return str(caught.value)


def test_refuses_missing_stale_partial_and_edited_results_and_names_them_all(study):
    assert "nano/data: no result yet; run `docvlm-study" in refusal(study)
    fill(study)
    before = sorted(files.root().rglob("*"))
    places = {step: study.step(step).path for step in steps.STEPS}
    whole = {step: places[step].read_text() for step in steps.STEPS if step != "report"}
    files.write_json(places["latency"], core.read_json(places["latency"]) | {"key": "0" * 16})
    edited = core.read_json(places["ablation"])
    edited["rows"][0]["docvqa"]["value"] = .99
    files.write_json(places["ablation"], edited)
    said = refusal(study).splitlines()
    assert len(said) == 3 and said[1].startswith("nano/ablation: the result file has been changed since it was written"), said
    assert said[2].startswith("nano/latency: inputs, code or parameters have changed"), said
    for step in ("ablation", "latency"): places[step].write_text(whole[step])
    places["evaluation"].write_text(whole["evaluation"][:500])
    places["latency"].unlink()
    said = refusal(study).splitlines()
    assert len(said) == 3 and "evaluation.json is not valid JSON" in said[1] and "nano/latency: no result yet" in said[2], said
    places["latency"].write_text(whole["latency"])
    cut = json.loads(whole["evaluation"])
    del cut["by_document_type"]
    files.write_json(places["evaluation"], cut)
    assert "nano/evaluation: the result file has been changed" in refusal(study)
    places["evaluation"].write_text(whole["evaluation"])
    assert sorted(files.root().rglob("*")) == before, "a refusal writes nothing"


@pytest.mark.parametrize("gains, start", [
    ((.2, .2, .2), "Fine-tuning raises the score on all 3 benchmarks: DocVQA +20.0 points"),
    ((.01, 0, -.01), "Fine-tuning shows no clear change (the interval includes zero) on all 3 benchmarks: DocVQA +1.0 points (95 % interval −3.0 to +5.0), ChartQA 0.0 points"),
    ((-.2, .01, -.2), "Fine-tuning lowers the score on 2 of 3 benchmarks: DocVQA −20.0 points (95 % interval −24.0 to −16.0) and InfographicVQA −20.0 points"),
    ((.2, -.2, 0), "Fine-tuning raises the score on 1 of 3 benchmarks: DocVQA +20.0 points (95 % interval +16.0 to +24.0); it lowers the score on 1 of 3 benchmarks: ChartQA")])
def test_answers_hold_whatever_the_interval(study, no_figures, gains, start):
    results = json.loads(json.dumps(synthetic_results(["page.png"])))
    results["evaluation"]["benchmarks"] = {b: cell(.3, gain) for b, gain in zip(("docvqa", "chartqa", "infovqa"), gains)}
    results["evaluation"]["by_document_type"] = {name: cell(.3, gain) for name, gain in zip(("forms", "bar charts", "letters"), gains)}
    for step in (s for s in steps.STEPS if s != "report"): study.step(step).run(lambda: results[step])
    values = report.report_values(study)
    (_, practical), (_, types), _ = values["answers"]
    assert f". {start}" in practical, practical
    gained = sum(gain > .04 for gain in gains)
    told = {0: "None of the 3 document types shows a clear gain", 1: "1 of 3 document types gains clearly", 3: "All 3 document types gain clearly"}
    assert types.startswith(told[gained]), types
    page = report.to_html(report.render((files.root() / "paper/template.md.j2").read_text(), html=True, **values), "Test")
    assert start.split(":")[0] in page and "Qwen2-VL-2B: not measured." in page


def readme_drift(study):
    "Message about the first line of README.md that differs from the notebook with the results filled in; None if there is none."
    def published(step): return files.read_json(steps.Step(study, step).path)
    wanted = readme.notebook_markdown(files.root()/"nbs"/"index.ipynb", readme.readme_blocks(study, published)).splitlines()
    found = (files.root()/"README.md").read_text(encoding="utf-8").splitlines()
    for number, (want, have) in enumerate(zip(wanted + [None], found + [None]), 1):
        if want != have: return f"README.md, line {number}: {have!r} should be {want!r}; run `make readme`"


def test_builds_html_and_pdf_and_readme(study):
    fill(study, texts=("42.10", *HOSTILE[:5]))
    result = report.build_report(study)
    html, pdf = (files.root() / path for path in result["artefacts"][:2])
    assert html.stat().st_size > 50_000 and pdf.read_bytes().startswith(b"%PDF")
    first = html.read_bytes(), pdf.read_bytes()
    assert report.build_report(study) == result and first == (html.read_bytes(), pdf.read_bytes())
    assert "Fine-tuning raises the score on 2 of 3 benchmarks: DocVQA +22.0 points" in result["answers"][0]
    assert "most of all invoices (+28.0 points" in result["answers"][1]

    text = readme.write_readme(study).read_text()
    assert "| DocVQA | ANLS | 412 | 31.0 | 53.0 |" in text and readme_drift(study) is None
    (files.root() / "README.md").write_text(text.replace("53.0", "63.0"))
    assert "63" in readme_drift(study)
    card = report.write_model_card(study, 42).read_text()
    meta = json.loads(card.split("---\n")[1])
    assert meta["model-index"][0]["results"][0]["metrics"][0]["value"] == cell(.31, .22)["ours"]["per_seed"]["42"]


def test_readme_shows_the_published_results():
    study = core.open_study("nano")
    if not (study.results_dir / "evaluation.json").exists(): pytest.skip("nothing published yet: run `make study`")
    assert readme_drift(study) is None


def test_the_report_names_the_settings_and_the_kind_of_adapter(study):
    (files.root()/"data/nano").mkdir(parents=True)
    own = core.open_study("nano", settings={"use_rslora": True, "use_dora": True, "prompt_suffix.docvqa": "<b>*short*</b>"})
    results = synthetic_results(["page.png"])
    results["training"]["model"] |= {"use_rslora": True, "use_dora": True}
    results["ablation"]["variants"] = [{"variant": name} | results["ablation"]["rows"][0] for name in ("rslora", "dora", "mlp")]
    for step in (s for s in steps.STEPS if s != "report"): own.step(step).run(lambda: results[step])
    text = html_of(own)
    assert "<code>use_rslora=true</code>" in text and "<code>prompt_suffix.docvqa=&lt;b&gt;*short*&lt;/b&gt;</code>" in text
    assert "(<em>α</em>/√<em>r</em>)" in text and "The length of each row of the sum is a parameter of its own (DoRA)" in text
    for name in ("rsLoRA", "DoRA", "MLP layers too", "none"): assert f"<td>{name}</td>" in text or f">{name}</td>" in text, name


def test_the_report_of_a_preset_names_no_settings(study):
    fill(study)
    text = html_of(study)
    assert "with other settings" not in text and "(<em>α</em>/<em>r</em>)" in text and "rsLoRA" not in text


def test_the_published_report_shows_the_real_documents_as_stored():
    stored = files.root()/"data/results/nano/real.json"
    if not stored.exists(): pytest.skip("no studies of real documents: see nbs/10_nano_base")
    page = (files.root()/"paper/paper.html").read_text(encoding="utf-8")
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", line, re.S) for line in re.findall(r"<tr.*?</tr>", page, re.S)]
    for row in json.loads(stored.read_text(encoding="utf-8"))["rows"]:
        found = row["comparison"]
        wanted = {row["documents"], percent(found["baseline"]["value"]), percent(found["ours"]["value"]), percent(row["ocr"])}
        assert any(wanted <= set(line) for line in cells), f"{wanted} is no row of the report; run nbs/10_nano_base and the report again"
