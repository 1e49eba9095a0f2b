"README, report and model card of made-up studies (a gain, a loss, nothing clear) read naturally, whoever leads and however many there are."
# ruff: noqa: F811
import json
import re

import pytest
from test_report import cell, study, synthetic_results  # noqa: F401

from docvlm import files, report, steps
from docvlm.ablation import pages_sentence
from docvlm.paper import readme
from docvlm.paper.figures import FIGURES
from docvlm.steps import Step, content_digest

GAINS = {"gain": .2, "loss": -.2, "none": .01}
BENCHMARKS, TYPES = ("docvqa", "chartqa", "infovqa"), ("forms", "tables", "invoices", "letters", "bar charts")
CLUMSY = re.compile(  # what no editor lets pass
    r"\b1 (?!of )(benchmarks|document types|seeds|pages|questions|adapters|labels|steps)\b|\bnone of the 1\b|\b[Aa]ll [12] \w+s\b|\b0 of \d+ (benchmarks|document types) (gain|lose)|"
    r"\b([Tt]he the|[Aa] a|is is|of of)\b|\+-|\+−|−-|--\d|\bnan\b|\bNone\b(?! of the)|\bTrue\b|[{}]|\bundefined\b|\(\)|\( | \)|,\.|\.\.(?!\.)|;\.| [.,;:](?!\w)|[a-z][;:][a-z*]|, and and\b", re.M)


def made_up(gain, benchmarks=BENCHMARKS, types=TYPES, seeds=2):
    "Results of a study in which fine-tuning changes every score by about the same."
    results = json.loads(json.dumps(synthetic_results(["page.png"])))
    evaluation, failures, ablation = (results[step] for step in ("evaluation", "failures", "ablation"))
    evaluation["benchmarks"] = {b: cell(.4, gain + .001*n) for n, b in enumerate(benchmarks)}
    evaluation["by_document_type"] = {name: cell(.4, gain - .002*n) for n, name in enumerate(types)}
    evaluation["systems"] = ["base", *(f"lora-r16-seed{42 + n}" for n in range(seeds))]
    del evaluation["chartqa_strict"], evaluation["fields"]
    evaluation |= {"chartqa_strict": None}
    counts = {name: {"pages": 10 + n, "questions": 60 + n} for n, name in enumerate(types)}
    results["data"]["splits"]["train"]["by_document_type"] = counts
    for kind in failures["types"]:
        if gain < 0: kind["before"], kind["after"] = kind["after"], kind["before"]
    delta = {"value": gain/10, "ci95": [gain/10 - .01, gain/10 + .01], "p_value": .2}
    failures["seed_signals"] = {"vote": {"value": .4, "ci95": [.3, .5], "single": .39, "delta": delta}} if seeds > 1 else None
    failures["silence"] = [{"coverage": share, "value": .5 + .1*(1 - share), "ci95": [.4, .6]} for share in (.5, .8, 1.)]
    ablation["doubling"] = {b: {"value": gain/10, "ci95": [gain/10 - .01, gain/10 + .01]} for b in benchmarks} | {"mpdocvqa": None}
    ablation["more_pixels"] = {b: {"value": .5 + gain, "ci95": [.4, .6], "delta": delta} for b in benchmarks}
    ablation["pages_answer"] = pages_sentence({"learning_curve": [{"pages": count} for count in (0, 245, 490, 980)], "fractions_left_out": [],
                                               "doubling": ablation["doubling"]})
    shown = {"retriever": "BM25 on the OCR text", "versions": "1", "budget_tokens": 4096, "questions": 60*seeds, "documents": seeds, "pages_asked": 12.5,
             "pages_shown": 4.2, "questions_with_evidence": 9, "evidence_recall": .75, "all_evidence_shown": .6}
    results["data"]["retrieval"] = {"test": shown}
    results["data"]["skipped"] = [{"file": f"page-{n}.png", "reason": "no answer"} for n in range(seeds)]
    for row in ablation["rows"] + ablation["quantized"]:
        for b in set(BENCHMARKS) - set(benchmarks): del row[b]
    return results


def publish(study, results, ocr=None):
    "Store results, and an OCR pipeline that scores `ocr` points more than the fine-tuned model on every benchmark."
    for step in (s for s in steps.STEPS if s != "report"): study.step(step).run(lambda: results[step])
    if ocr is None: return
    stored = {step: study.result(step) for step in ("data", "evaluation")}
    cells = {b: {"metric": "anls", "questions": 412, "images": 64, "answered": 412, "failed": 0, "empty": 0, "value": found["ours"]["value"] + ocr,
                 "ci95": [.1, .9], "delta": {"value": -ocr, "ci95": [-ocr - .02, -ocr + .02], "p_value": .001}}
             for b, found in stored["evaluation"]["benchmarks"].items()}
    record = {"settings": {}, "benchmarks": cells, "failures": {}, "unanswered": [], "cost_per_1000_questions_usd": .003, "price_source": "prices",
              "seconds_per_question": .1, "inputs": {"questions": stored["data"]["digest"]["test"], "evaluation": content_digest(stored["evaluation"])}}
    record = json.loads(json.dumps(record))
    files.write_json(study.results_dir/"systems.json", {"step": "systems", "systems": {"OCR with rules": record | {"content": content_digest(record)}}})


def read_naturally(text):
    "Assert that the prose of a text has no slip that its numbers cause."
    prose = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("|", "!", ":::", "    ")) and "`" not in line)
    prose = re.sub(r"\\(?=\W)|\[|\]\{[^}]*\}|\]", "", prose)
    found = CLUMSY.search(prose)
    assert not found, (found[0], prose[max(0, found.start() - 150):found.end() + 150])
    assert "`" in text or prose.count("(") == prose.count(")"), prose


def sentences(study):
    blocks = readme.readme_blocks(study)
    values = report.report_values(study)
    rendered = report.render((files.root()/"paper/template.md.j2").read_text(encoding="utf-8"), html=True, **values)
    for name in ("highlights", "answers", "takeaways"): read_naturally(blocks[name])
    for question, answer in values["answers"]: read_naturally(answer)
    read_naturally(rendered.partition("## Reproducibility")[0])
    assert "| OCR with rules |" in blocks["results"] or not values["others"]
    return blocks, dict(values["answers"]), rendered


@pytest.fixture(autouse=True)
def no_figures(monkeypatch): monkeypatch.setattr(report, "draw_all", lambda study, results: dict.fromkeys(FIGURES))


@pytest.mark.parametrize("kind, ocr, start, gains, types", [
    ("gain", -.1, "Yes: on all 3 benchmarks, it scores higher than OCR with rules. With 7.5 million parameters", "raises the score on all 3 benchmarks", "All 5 document types gain clearly"),
    ("loss", .3, "Not this one: on all 3 benchmarks, the fine-tuned model scores lower than OCR with rules. With", "lowers the score on all 3 benchmarks", "None of the 5 document types shows a clear gain"),
    ("none", 0., "It is no better and no worse than OCR with rules. With", "shows no clear change (the interval includes zero) on all 3", "None of the 5 document types")])
def test_three_studies_say_what_they_found(study, kind, ocr, start, gains, types):
    publish(study, made_up(GAINS[kind]), ocr)
    blocks, answers, rendered = sentences(study)
    practical, by_type, failures, pages = answers.values()
    assert practical.startswith(start) and gains in practical, practical
    assert pages.startswith("Twice the 980 training pages would ") and "; would" not in pages, pages
    assert by_type.startswith(types) and ("Clear losses: " in by_type) is (kind == "loss"), by_type
    assert "fully correct after fine-tuning" in failures and failures.count(". ") >= 1, failures
    assert "OCR with rules" not in failures, "another system is no remedy for the model; question 1 has it"
    headline = blocks["results"].splitlines()[0]
    assert headline.index("OCR with rules") < headline.index("base") < headline.index("fine-tuned"), headline
    sign = {"gain": "+20.0", "loss": "−20.0", "none": "+1.0"}[kind]
    shown = f"{sign} points on DocVQA by fine-tuning, no clear change" if kind == "none" else f"**{sign} points on DocVQA**"
    assert shown in blocks["highlights"] and "172,032" not in blocks["highlights"]
    assert all(question in rendered.replace("\\", "") for question in readme.QUESTIONS)


@pytest.mark.parametrize("kind", GAINS)
@pytest.mark.parametrize("benchmarks, types, seeds", [(BENCHMARKS[:1], TYPES[:1], 1), (BENCHMARKS[:2], TYPES[:2], 2), (BENCHMARKS, (), 2)])
def test_one_two_and_none_read_naturally(study, kind, benchmarks, types, seeds):
    publish(study, made_up(GAINS[kind], benchmarks, types, seeds))
    blocks, answers, rendered = sentences(study)
    practical, by_type, *_ = answers.values()
    assert ("One row was skipped" if seeds == 1 else "2 rows were skipped") in rendered
    which = {1: "on the only benchmark", 2: "on both benchmarks", 3: "on all 3 benchmarks"}[len(benchmarks)]
    assert which in practical and practical.startswith("With 7.5 million parameters"), practical
    if not types: assert by_type == "No test page has a document type."
    elif kind == "gain": assert by_type.startswith({1: "The only document type gains clearly", 2: "Both document types gain clearly"}[len(types)])
    else: assert "clear gain" in by_type, by_type
    assert ("one seed" if seeds == 1 else "mean over 2 seeds") in blocks["results"]


def test_the_readme_has_the_sentences_and_the_card_the_readmes_code(study):
    publish(study, made_up(.2), -.1)
    text = readme.write_readme(study).read_text(encoding="utf-8")
    assert text.count("Yes: on all 3 benchmarks, it scores higher than OCR with rules") == 1 and "2412.08746" in text and "| 765 | 10.00 | 7.65 |" in text
    titles = ("Highlights", "The three questions", "Quick start", "Ask about a page", "Results", "Other models", "Key takeaways", "Limitations")
    places = [text.index(f"\n## {title}") for title in titles]
    assert places == sorted(places) and text.index("demo.webp") < places[0]
    (files.root()/"data/runs/nano/adapters/lora-r16-seed43").mkdir()
    card = report.write_model_card(study, 43).read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    printed = re.search(r"```python\n(from peft.*?)```", text, re.S)[1]
    assert "adapters/lora-r16-seed43" in code and len(code.splitlines()) == len(printed.splitlines())
    compile(code, "card", "exec")
    for title in ("Use", "Training", "Scores", "Intended use and limits"): assert f"\n## {title}" in card
    assert "learning rate" in card and "56.0 to 64.0" in card, "set-up, and scores with intervals"
    read_naturally(card.split("---\n", 2)[2].partition("```")[0] + card.rpartition("```")[2])


@pytest.mark.parametrize("text", ["On 1 benchmarks.", "The gain is +-2.0.", "A nan score.", "All 1 types gain.", "It helps ().", "The the end.", "It ends .", "One;two.", "A gain (of two."])
def test_a_slip_is_found(text):
    with pytest.raises(AssertionError): read_naturally(text)


def test_published_steps_are_those_that_the_readme_reads():
    assert set(readme.README_STEPS) == set(steps.STEPS) - {"report"} and Step
