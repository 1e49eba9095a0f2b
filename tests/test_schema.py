"The results schema describes the results files, all of them and nothing else."
import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from docvlm.paper.readme import JSON_TYPES, results_schema, schema_errors, schema_page

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = results_schema()
PUBLISHED = sorted((ROOT/"data/results").glob("*/*.json"))


def rare_objects(tmp_path):
    "Objects that no published file happens to hold, from the code that writes them."
    from docvlm.baselines.compare import _unanswered
    from docvlm.data import find_leaks
    from docvlm.evaluation import against_published
    from docvlm.inputs.folder import load_folder
    from docvlm.inputs.sources import rows_dataset
    from docvlm.presets import get_preset
    for split in ("train", "test"):
        (tmp_path/split).mkdir()
        Image.effect_noise((60, 40), 50).save(tmp_path/split/"page.png")
        lines = [{"file_name": "page.png", "question": "Total?", "answers": ["9.00"]}, {"file_name": "none.png"}]
        (tmp_path/split/"metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows, skipped = load_folder(tmp_path, tmp_path/"pages")
    pages = rows_dataset(rows["train"])
    failed = pd.DataFrame([{"question_id": "q", "doc_id": "d", "failure": "HTTP 400", "reason": None}])
    cells = {"docvqa": {"baseline": {"value": .5}}}
    yield from (("skipped_row", row) for row in skipped)
    yield from (("leaked_pair", pair) for pair in find_leaks(pages, pages)["pairs"])
    yield from (("published_gap", gap) for gap in against_published(get_preset("qwen2-vl-2b@vlmevalkit"), cells))
    yield from (("unanswered_question", row) for row in _unanswered(failed))
    yield "other_system", {"failures": dict(Counter(failed.failure))}


def test_every_field_is_described_and_every_description_names_a_field(tmp_path):
    if not PUBLISHED: pytest.skip("nothing published yet: run `make study`")
    used, errors = set(), []
    for path in PUBLISHED: errors += schema_errors(json.loads(path.read_text(encoding="utf-8")), path.name, SCHEMA, used)
    for name, value in rare_objects(tmp_path): errors += schema_errors(value, name, SCHEMA, used)
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
