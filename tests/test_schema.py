"The results schema describes the results files, all of them and nothing else."
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from datasets import Dataset
from PIL import Image
from schema import JSON_TYPES, schema_errors

from docvlm.core import Study
from docvlm.engine import answering
from docvlm.files import results_schema, schema_page

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = results_schema()
PUBLISHED = sorted((ROOT/"data/results").glob("*/*.json"))
ANSWERS = pd.DataFrame({"doc_id": list("xxyyz"), "pages": [[1]]*5, "benchmark": "docvqa", "score": 0.})
BETTER = ANSWERS.assign(score=[1, 0, 1, 1, 1.])


def curves(monkeypatch):
    "A learning curve with a fraction left out, and power, from the code that writes them."
    from docvlm import ablation
    from docvlm.core import open_study
    rows = Dataset.from_dict({"doc_id": [f"d{n}" for n in range(8)], "pages": [[1]]*8, "doc_types": [[]]*8})
    done = {"data": {"splits": {"test": {"questions": 5}}}, "training": {"setup": {"steps": 1, "pages_per_step": 1, "epochs": 1}, "seeds": {"42": {"train_s": 1}}},
            "evaluation": {"throughput": {"base": {"questions_per_s": 1}}, "benchmarks": {"docvqa": {"ours": {"per_seed": {"42": .5, "43": .6}}}}}}
    with monkeypatch.context() as patch:
        patch.setattr(Study, "result", lambda self, name: done[name])
        patch.setattr(ablation, "load_splits", lambda study: {"train": rows})
        patch.setattr(ablation, "train_adapter", lambda *args, **options: {"steps": 3, "epochs": 1.5, "train_s": 1., "adapter": "lora"})
        patch.setattr(ablation, "predict_systems", lambda study, adapters: (
            {"base": ANSWERS} | {name: ANSWERS if "documents" in name else BETTER for name in adapters}, {}))
        curve, _ = ablation.learning_curve(open_study("smoke"))
        yield json.loads(json.dumps(curve | {"power": ablation.power(open_study("smoke"))}))


def ablation_rows(monkeypatch):
    "The rows of adapters trained on a quantized base and with a variant of LoRA, from the code that writes them."
    from docvlm import ablation
    from docvlm.core import open_study
    record = {"lora_rank": 16, "lora_alpha": 32, "trainable_parameters": 10, "trainable_percent": 1., "seed": 42, "train_s": 1., "adapter": "lora"}
    with monkeypatch.context() as patch:
        patch.setattr(ablation, "train_adapter", lambda study, rank, seed, precision="", variant="": record | {"precision": precision})
        patch.setattr(ablation, "predict_systems", lambda study, adapters, precision="": (
            {"base": ANSWERS} | {name: BETTER for name in adapters}, {}))
        study = open_study("smoke")
        return {"quantized": ablation.ablate_precision(study, "nf4"), "variants": ablation.ablate_variants(study)[0]}


def rare_objects(tmp_path, monkeypatch):
    "Objects that no published file happens to hold, from the code that writes them."
    from test_benchmark import synthetic_benchmark
    from test_rehearsal import synthetic_rehearsal
    from docvlm import failures
    from docvlm.analysis.extraction import extraction_scores
    from docvlm.baselines.compare import _unanswered
    from docvlm.inputs.leakage import find_leaks
    from docvlm.evaluation import against_published, compare
    from docvlm.inputs.folder import load_folder
    from docvlm.inputs.retrieval import _recall
    from docvlm.inputs.sources import rows_dataset
    from docvlm.presets import get_preset
    for split in ("train", "test"):
        (tmp_path/split).mkdir()
        Image.effect_noise((60, 40), 50).save(tmp_path/split/"page.png")
        lines = [{"file_name": "page.png", "question": "Total?", "answers": ["9.00"]}, {"file_name": "none.png"}]
        (tmp_path/split/"metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows, skipped = load_folder(tmp_path, tmp_path/"pages")
    pages = rows_dataset(rows["train"])
    failed = pd.DataFrame([{"question_id": "q", "doc_id": "d", "pages": [1], "failure": "HTTP 400", "reason": None}])
    cells = {"docvqa": {"baseline": {"value": .5}}}
    yield "benchmark.json", {part: synthetic_benchmark()[part] for part in ("predict", "documents")}
    yield "rehearsal.json", synthetic_rehearsal()
    yield from (("skipped_row", row) for row in skipped)
    yield from (("leaked_pair", pair) for pair in find_leaks(pages, pages)["pairs"])
    yield from (("published_gap", gap) for gap in against_published(get_preset("qwen2-vl-2b@vlmevalkit"), cells))
    yield from (("unanswered_question", row) for row in _unanswered(failed))
    yield "other_system", {"failures": dict(Counter(failed.failure))}
    frame = pd.DataFrame({"question_id": list("abcd"), "doc_id": list("xxyy"), "pages": [[1]]*4, "evidence_pages": [[]]*4, "field": "total", "question": "?",
                          "benchmark": "docvqa", "answers": [["9"], [""], ["8"], ["May"]], "prediction": ["9", "", "7", "May"], "confidence": .9})
    yield "evaluation.json", {"fields": extraction_scores(frame, [frame], [42], 20),
                              "training_sample": {"questions": 4, "of": 9, "systems": ["base@train"]}}
    pages = rows_dataset([row | {"question_id": name} for name, row in zip("abcd", rows["train"]*4)])
    with monkeypatch.context() as patch:
        patch.setattr(failures, "root", lambda: tmp_path)
        listed = failures.suspect_entries(frame, [frame], pages, tmp_path/"suspects")
    assert listed["listed"][0]["answer"] == "7"
    cell = compare(frame.assign(score=0.), [frame.assign(score=[1., 0, 1, 1])], [42], 100)
    code = {"git_sha": "", "dirty": False, "notebook_sha256": "", "library_sha256": ""}
    yield "real.json", {"rows": [{"documents": "receipts", "benchmark": "docvqa", "comparison": cell, "ocr": None, "code": code}]}
    for forgotten in ({"comparison": cell, "note": None}, {"comparison": None, "note": "no connection"}): yield "evaluation.json", {"forgotten": forgotten}
    tokenizer = SimpleNamespace(unk_token_id=2, pad_token_id=0, eos_token_id=1)
    with monkeypatch.context() as patch:
        patch.setattr(answering, "encode_text", lambda _, text: [2 if text == "?" else 5])
        unknown = answering.count_unknown(tokenizer, frame.assign(score=1.), [frame.assign(score=1.)])
    yield "evaluation.json", {"by_language": {"Korean": cell}, "by_language_characters": {"Korean": cell}, "unknown_characters": unknown}
    yield "split", {"by_language": {"Korean": {"pages": 1, "questions": 2}}}
    yield "evaluation.json", {"by_page_count": {"2–4 pages": cell}, "by_evidence_page": {"page 1": cell}}
    chosen = {"retriever": "BM25", "versions": "1", "budget_tokens": 9, "questions": 1, "questions_without_match": 0, "documents": 1, "pages_asked": 3., "pages_shown": 2.}
    yield "data.json", {"retrieval": {"test": chosen | _recall([[1]], [[1, 2]])}}
    yield from (("ablation.json", curve) for curve in curves(monkeypatch))
    yield "ablation.json", ablation_rows(monkeypatch)
    yield "failures.json", {"suspect_labels": {"test": listed, "training": listed, "training_questions": 9, "seeds": 1,
                                               "detection": failures.measure_detection([frame])}}


def test_every_field_is_described_and_every_description_names_a_field(tmp_path, monkeypatch):
    if not PUBLISHED: pytest.skip("nothing published yet: run `make study`")
    used, errors = set(), []
    for path in PUBLISHED: errors += schema_errors(json.loads(path.read_text(encoding="utf-8")), path.name, SCHEMA, used)
    for name, value in rare_objects(tmp_path, monkeypatch): errors += schema_errors(value, name, SCHEMA, used)
    assert not errors, sorted(set(errors))
    described = {(name, field) for name in SCHEMA for field in SCHEMA[name]}
    assert described == used, f"paper/results.csv describes what no file has: {sorted(described - used)}"


@pytest.mark.parametrize("change, error", [
    (lambda data: data["splits"]["test"].update(extra=1), "split extra is not described in paper/results.csv"),
    (lambda data: data["leakage"].update(near="2"), "leakage near is '2', but paper/results.csv says integer"),
    (lambda data: data.update(digest={"test": {"a": 1}}), "data.json digest.test is {'a': 1}, but paper/results.csv says text"),
    (lambda data: data.update(anything=[1]), "data.json anything is not described in paper/results.csv")])
def test_a_field_without_description_or_of_another_type_is_named(change, error):
    data = {"step": "data", "splits": {"test": {"pages": 3}}, "leakage": {"near": 2}, "digest": {"test": "0f"}}
    assert schema_errors(data, "data.json", SCHEMA, set()) == []
    change(data)
    assert schema_errors(data, "data.json", SCHEMA, set()) == [error]


def test_types_are_known_and_descriptions_are_short_and_unique():
    for name, fields in SCHEMA.items():
        for field, (kind, text) in fields.items():
            assert kind.removesuffix(" or null").replace("list of ", "") in {*JSON_TYPES, *SCHEMA}, (name, field, kind)
            assert text and len(text) < 140 and text == text.strip(), (name, field)
    lines = (ROOT/"paper/results.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + sum(map(len, SCHEMA.values())), "no field is described twice"


def test_the_page_shows_the_schema():
    assert (ROOT/"paper/results.md").read_text(encoding="utf-8") == schema_page(), "run `make readme`"
