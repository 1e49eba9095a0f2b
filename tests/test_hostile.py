"Hundreds of broken and hostile inputs at once: each is used as it should be, or skipped, counted and listed with a plain reason."
import json
import tracemalloc
import unicodedata

import pytest
from hostile import EITHER, USED, cases, encoded, record

from docvlm.files import write_json
from docvlm.inputs.folder import load_folder
from docvlm.inputs.folder import BENCHMARKS, MAX_CHARACTERS
from docvlm.inputs.sources import rows_dataset

CASES = {case.name: case for case in cases()}


def plain(text): return all(unicodedata.category(c) not in ("Cc", "Cs") and c not in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069" for c in text)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    "Where the folder lies; by case the row it became or the reason why it was skipped."
    folder = tmp_path_factory.mktemp("hostile")
    for split in ("train", "test"):
        (folder/split).mkdir()
        (folder/split/"page.png").write_bytes(encoded("PNG"))
        (folder/split/"metadata.jsonl").write_text(json.dumps(record()) + "\n", encoding="utf-8")
    with (folder/"train"/"metadata.jsonl").open("ab") as lines:
        for case in CASES.values():
            assert b"\n" not in case.line
            lines.write(case.line + b"\n")
            for name, content in case.files.items():
                (folder/"train"/name).write_bytes(content) if isinstance(content, bytes) else content(folder/"train"/name)
    rows, skipped = load_folder(folder, folder/"pages")
    reasons = {skip["row"]: skip["reason"] for skip in skipped}
    assert len(reasons) == len(skipped) and len(rows["train"]) + len(skipped) == len(CASES) + 1, "each line is a row or a skip"
    left = iter(rows["train"][1:])
    found = {name: reasons.get(f"train/metadata.jsonl:{number}") or next(left) for number, name in enumerate(CASES, 2)}
    return folder, found, rows["train"], skipped


def test_the_corpus_is_large_and_the_same_each_time():
    assert len(CASES) == len(list(cases())) >= 200, "names repeat, or cases are missing"
    assert [case.line for case in cases()] == [case.line for case in CASES.values()]


@pytest.mark.parametrize("name", CASES)
def test_each_is_used_or_skipped_for_its_own_reason(outcome, name):
    _, found, _, _ = outcome
    row, wanted = found[name], CASES[name].outcome
    if isinstance(row, str):
        assert wanted != USED, row
        assert wanted == EITHER or wanted in row
        assert 0 < len(row) <= 300 and plain(row)
    else:
        assert wanted in (USED, EITHER), f"used, but should be skipped: {wanted}"
        assert row["benchmark"] in BENCHMARKS and row["answers"] and row["question"] and row["question_id"]
        assert all(row["answers"]) or row["answers"] == [""], "an empty answer stands alone: the value is absent"
        texts = [row["question"], row["question_id"], row["doc_id"], *filter(None, row["answers"]), *row["doc_types"]]
        assert all(plain(text) and 0 < len(text) <= 2*MAX_CHARACTERS for text in texts)


def test_every_used_page_opens_upright_in_rgb(outcome):
    folder, found, rows, _ = outcome
    dataset = rows_dataset(rows)
    for row in dataset: assert row["image"].mode == "RGB" and min(row["image"].size) > 0
    sizes = {row["question_id"]: row["image"].size for row in dataset}
    for number in range(1, 9): assert sizes[f"orientation {number}"] == ((40, 24) if number < 5 else (24, 40))
    assert all(row["image"].startswith(str(folder/"pages"/"train")) for row in rows), "a stored page lies elsewhere"
    assert sizes["same names but for the suffix, one"] and len({row["doc_id"] for row in rows if "twin" in row["doc_id"]}) == 2


def test_one_page_is_one_document_however_it_is_named(outcome):
    _, found, _, _ = outcome
    named = ("link within the folder", "file name './page.png', used", "file name 'a/../page.png', used", "question 7, used")
    assert {found[name]["doc_id"] for name in named} == {"train/page.png"} and len({found[name]["image"] for name in named}) == 1


def test_the_list_of_skips_can_be_published(outcome, tmp_path):
    folder, _, _, skipped = outcome
    text = write_json(tmp_path/"skipped.json", {"skipped": skipped}).read_text(encoding="utf-8")
    assert str(folder) not in text and len(text) < 400*len(skipped)


@pytest.mark.parametrize("make", [
    lambda path: path.write_bytes(b""), lambda path: path.mkdir(), lambda path: path.symlink_to("metadata.jsonl"),
    lambda path: path.write_bytes(b"\xff\xfe" + '{"a": 1}\n'.encode("utf-16-le")), lambda path: path.write_bytes(b"[]\n"*1000),
    lambda path: path.write_text(json.dumps({"a"*1_000_000: 1})), lambda path: path.write_bytes(bytes(5_000_000)),
    lambda path: path.symlink_to("/dev/null")], ids=["empty", "folder", "link to itself", "UTF-16", "lists", "long key", "zeros", "device"])
def test_a_split_without_a_usable_line_is_one_clear_error(tmp_path, make):
    (tmp_path/"train").mkdir()
    make(tmp_path/"train"/"metadata.jsonl")
    with pytest.raises((ValueError, OSError)) as error: load_folder(tmp_path, tmp_path/"pages")
    assert len(str(error.value)) < 2000 and plain(str(error.value)) and "metadata.jsonl" in str(error.value)


def test_a_line_of_any_length_takes_bounded_memory(tmp_path):
    from docvlm.inputs.folder import MAX_LINE_BYTES, read_metadata
    path = tmp_path/"metadata.jsonl"
    with path.open("wb") as file:
        for _ in range(10): file.write(b"a"*MAX_LINE_BYTES)
        file.write(b"\n" + json.dumps(record()).encode())
    tracemalloc.start()
    records, skipped = read_metadata(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(records) == 1 and "over 16,000,000 bytes" in skipped[0]["reason"] and peak < 6*MAX_LINE_BYTES
