"Tables that people have, good and bad, as `docvlm-import` turns them into a documents folder."
import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_pdf import BROKEN, drawn, saved

from docvlm import cli
from docvlm.inputs.folder import load_folder
from docvlm.inputs.tables import import_documents, read_fields, read_table

REAL = Path(__file__).parents[2]/"shared"/"real"
FIELDS = "field,question\ntotal,What is the total?\ndate,What is the date?\n"


def pages(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        drawn(name[:5]).save(folder/name)


def lines(folder, split="train"): return [json.loads(line) for line in (folder/split/"metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def loaded(folder, tmp_path):
    "What the study reads of an imported folder; it must skip nothing."
    rows, skipped = load_folder(folder, tmp_path/"stored", 112_896)
    assert not skipped
    return rows


@pytest.fixture
def desk(tmp_path):
    "Ten pages without a table."
    pages(tmp_path/"desk", *(f"scans/{n}.png" for n in range(10)))
    return tmp_path/"desk"


def records(count=10): return [{"file_name": f"scans/{n}.png", "question": "Total?", "answers": [f"{n}.00", f"${n}.00"]} for n in range(count)]


def as_jsonl(path, rows): path.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))
def as_parquet(path, rows): pd.DataFrame(rows).to_parquet(path.with_suffix(".parquet"))
def as_csv(path, rows): pd.DataFrame(rows).to_csv(path.with_suffix(".csv"), index=False)


def as_json_csv(path, rows):
    pd.DataFrame([row | {"answers": json.dumps(row["answers"])} for row in rows]).to_csv(path.with_suffix(".csv"), index=False, sep=";")


@pytest.mark.parametrize("write", [as_jsonl, as_parquet, as_csv, as_json_csv])
def test_one_table_of_any_kind_is_divided_by_documents(desk, tmp_path, write):
    write(desk/"metadata", records() + [row | {"question": "Date?"} for row in records()])
    report = import_documents(desk, tmp_path/"mine", seed=1)
    assert report["notes"] == ["test/ was made: 2 of 10 documents, chosen at random (seed 1)"] and not report["skipped"]
    rows = loaded(tmp_path/"mine", tmp_path)
    assert {split: len(found) for split, found in rows.items()} == {"train": 16, "test": 4}
    names = {split: {row["doc_id"].partition("/")[2] for row in found} for split, found in rows.items()}
    assert not names["train"] & names["test"] and len(names["train"] | names["test"]) == 10
    for row in rows["train"] + rows["test"]: assert row["answers"] == [f"{row['doc_id'][-5]}.00", f"${row['doc_id'][-5]}.00"]
    import_documents(desk, tmp_path/"again", seed=1)
    assert lines(tmp_path/"again", "test") == lines(tmp_path/"mine", "test")


def test_a_document_is_not_divided(tmp_path):
    desk = tmp_path/"desk"
    desk.mkdir()
    for n in range(3): (desk/f"{n}.pdf").write_bytes(saved("PDF", "1", "2", "3", "4"))
    as_csv(desk/"metadata", [{"file_name": f"{n}.pdf", "page": page, "question": "Total?", "answers": "9"} for n in range(3) for page in range(1, 5)])
    import_documents(desk, tmp_path/"mine", test_share=.5)
    found = {split: {line["file_name"] for line in lines(tmp_path/"mine", split)} for split in ("train", "test")}
    assert not found["train"] & found["test"] and [len(lines(tmp_path/"mine", split)) for split in found] == [4, 8]
    rows = loaded(tmp_path/"mine", tmp_path)
    assert {row["pages"][0] for row in rows["test"]} == {1, 2, 3, 4}


def test_pages_in_files_of_their_own_stay_with_their_document(desk, tmp_path):
    as_jsonl(desk/"metadata", [row | {"document": f"{n//5}.pdf"} for n, row in enumerate(records())])
    import_documents(desk, tmp_path/"mine")
    assert len({line["file_name"][-5] > "4" for line in lines(tmp_path/"mine", "test")}) == 1


@pytest.mark.parametrize("names, note", [(("train", "test"), None), (("train", "validation"), "test/ is the validation split"),
                                         (("training", "val"), "test/ is the validation split"), (("Train", "Dev"), "test/ is the validation split"),
                                         (("val",), "test/ was made: 1 of 5 documents"), (("train",), "test/ was made: 1 of 5 documents"),
                                         (("val", "test"), "train/ is the validation split"),
                                         (("train", "test", "valid"), "validation: 5 questions left out; there is a test split")])
@pytest.mark.parametrize("how", ["folders", "column", "files"])
def test_splits_by_folder_column_or_file_are_understood(tmp_path, names, note, how):
    source = tmp_path/"desk"
    for k, name in enumerate(names):
        pages(source/name, *(f"{k}{n}.png" for n in range(5)))
        rows = [{"file_name": f"{k}{n}.png", "question": "Total?", "answers": ["9.00"]} for n in range(5)]
        if how == "folders": as_jsonl(source/name/"metadata", rows)
        if how == "files": as_csv(source/f"{name}_v1", rows)
        if how == "column":
            with (source/"all.jsonl").open("a") as file: file.write("".join(json.dumps(row | {"split": name}) + "\n" for row in rows))
    report = import_documents(source, tmp_path/"mine")
    found = [told for told in report["notes"] if not (how != "folders" and told.startswith(f"{5*len(names)} documents were found by name in another folder"))]
    assert [note] == found if note and "made" not in note else (not note or note in found[0])
    assert not report["skipped"] and report["train"]["questions"] + report["test"]["questions"] == 5*min(len(names), 2)
    loaded(tmp_path/"mine", tmp_path)


def test_unknown_splits_are_refused_by_name(desk, tmp_path):
    pages(desk/"holdout", "1.png")
    as_jsonl(desk/"holdout"/"metadata", records(1))
    with pytest.raises(ValueError, match="holdout: unknown split 'holdout'; call it train, test or validation"): import_documents(desk, tmp_path/"mine")
    pages(desk/"train", "2.png")
    as_jsonl(desk/"train"/"metadata", records(1))
    with pytest.raises(ValueError, match="unknown split 'holdout'"): import_documents(desk, tmp_path/"mine")
    as_jsonl(desk/"train"/"metadata", [records(1)[0] | {"split": "fold 3"}])
    with pytest.raises(ValueError, match="metadata.jsonl:1: unknown split 'fold 3'"): import_documents(desk/"train"/"metadata.jsonl", tmp_path/"mine")
    assert not (tmp_path/"mine").exists()


@pytest.mark.parametrize("style", ["LLaVA", "messages", "parts", "lines"])
def test_conversations_become_questions(desk, tmp_path, style):
    def turns(n): return [("human", f"<image>\nWhat is the total of {n}?"), ("gpt", f"{n}.00"), ("human", "And the date?"), ("gpt", "")]
    roles, found = {"human": "user", "gpt": "assistant"}, []
    for n in range(10):
        talk = [{"from": who, "value": text} for who, text in turns(n)]
        if style in ("messages", "parts"):
            talk = [{"role": "system", "content": "Be brief."}, *({"role": roles[turn["from"]], "content": turn["value"]} for turn in talk)]
        if style == "parts":
            for turn in talk: turn["content"] = [{"type": "image"}, {"type": "text", "text": turn["content"]}]
        found.append({"id": f"talk {n}", "image": f"other/place/{n}.png", "conversations": talk} if style in ("LLaVA", "lines") else
                     {"images": [f"scans/{n}.png"], "messages": talk})
    found += [{"image": ["scans/1.png", "scans/2.png"], "conversations": []}, {"image": "none.png", "conversations": found[0].get("conversations", [])},
              {"conversations": [{"from": "human", "value": "Hello?"}]}, {"image": "other/place/1.png" if style in ("LLaVA", "lines") else "scans/1.png",
               "conversations": [{"from": "human", "value": "Who?"}]}, 7]
    if style == "lines": as_jsonl(desk/"talks", found)
    else: (desk/"talks.json").write_text(json.dumps(found))
    report = import_documents(desk, tmp_path/"mine")
    rows = [row for split in loaded(tmp_path/"mine", tmp_path).values() for row in split]
    assert len(rows) == 20 and {row["question"] for row in rows} == {*(f"What is the total of {n}?" for n in range(10)), "And the date?"}
    assert [row["answers"] for row in rows if row["question"] == "And the date?"] == [[""]]*10
    reasons = " ".join(skip["reason"] for skip in report["skipped"])
    for reason in ("a conversation about no image", "zero answers", "not a JSON object"): assert reason in reasons


def test_docvqa_as_it_is_published(tmp_path):
    source = tmp_path/"docvqa"
    pages(source, *(f"documents/doc{n}_{page}.png" for n in range(3) for page in (1, 2)))
    for split in ("train", "val", "test"):
        data = [{"questionId": 10*n + page, "question": "What is the date?", "question_types": ["form"], "image": f"documents/doc{n}_{page}.png",
                 "docId": n, "ucsf_document_id": f"doc{n}", "ucsf_document_page_no": str(page), "data_split": split}
                | ({} if split == "test" else {"answers": ["May", "may"]}) for n in [("train", "val", "test").index(split)] for page in (1, 2)]
        about = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": split, "data": data}
        (source/f"{split}_v1.0_withQT.json").write_text(json.dumps(about))
    report = import_documents(source, tmp_path/"mine")
    assert [skip["reason"] for skip in report["skipped"]] == ["zero answers"]*2 and "test/ is the validation split" in report["notes"]
    row = loaded(tmp_path/"mine", tmp_path)["test"][0]
    assert (row["question_id"], row["answers"], row["doc_types"], row["benchmark"]) == ("11", ["May", "may"], ["form"], "docvqa")


def test_infographics_and_charts_have_their_own_metric(tmp_path):
    source = tmp_path/"infographics"
    pages(source, "images/1.jpeg", "images/2.jpeg")
    data = [{"questionId": n, "question": "How many?", "image_local_name": f"{n}.jpeg", "image_url": "x", "answers": ["4"]} for n in (1, 2)]
    (source/"train.json").write_text(json.dumps({"dataset_name": "infographicVQA", "data": data}))
    import_documents(source, tmp_path/"one")
    assert loaded(tmp_path/"one", tmp_path)["train"][0]["benchmark"] == "infovqa"
    source = tmp_path/"ChartQA Dataset"
    for split in ("train", "val", "test"):
        pages(source/split, f"png/{split}1.png", f"png/{split}2.png")
        for place in ("tables", "annotations"): (source/split/place).mkdir()
        (source/split/"tables"/"1.csv").write_text("a,b\n1,2\n")
        for kind, n in (("human", 1), ("augmented", 2)):
            (source/split/f"{split}_{kind}.json").write_text(json.dumps([{"imgname": f"{split}{n}.png", "query": "How many?", "label": "4"}]))
    report = import_documents(source, tmp_path/"two")
    rows = loaded(tmp_path/"two", tmp_path)
    assert "validation: 2 questions left out; there is a test split" in report["notes"] and not report["skipped"]
    assert [(row["benchmark"], row["doc_types"]) for row in rows["train"]] == [("chartqa", ["augmented"]), ("chartqa", ["human"])]


@pytest.mark.parametrize("header, cells", [("document,total,date", "{n},{n}.00,"), ("file_name;page;total;date", 'C:\\scans\\{n}.PNG;1;{n}.00;""'),
                                           ("\ufefffile;date;total;clerk", "/home/eve/{n}.png;;{n}.00;eve"), ("image\ttotal\tdate", "scans/{n}.png\t{n}.00\t ")])
def test_a_table_of_fields(desk, tmp_path, header, cells):
    (desk/"fields.csv").write_text(FIELDS)
    (desk/"values.csv").write_text("\n".join([header, *(cells.format(n=n) for n in range(10))]), encoding="utf-8")
    report = import_documents(desk, tmp_path/"mine")
    rows = [row for split in loaded(tmp_path/"mine", tmp_path).values() for row in split]
    assert len(rows) == 20 and report["train"]["absent"] + report["test"]["absent"] == 10
    assert {(row["field"], row["question"]) for row in rows} == {("total", "What is the total?"), ("date", "What is the date?")}
    for row in rows: assert row["answers"] == [f"{row['doc_id'][-5]}.00" if row["field"] == "total" else ""]
    assert ("desk/values.csv: not read: clerk" in report["notes"]) is ("clerk" in header)


@pytest.mark.parametrize("write", [as_jsonl, as_parquet])
def test_an_object_of_fields(desk, tmp_path, write):
    (desk/"fields.csv").write_text(FIELDS)
    write(desk/"metadata", [{"file_name": f"scans/{n}.png", "fields": {"total": ["9.00", "9"], "date": None}} for n in range(10)])
    import_documents(desk, tmp_path/"mine")
    rows = loaded(tmp_path/"mine", tmp_path)["train"]
    assert [row["answers"] for row in rows[:2]] == [["9.00", "9"], [""]]


def test_documents_without_a_row_are_told(desk, tmp_path):
    as_csv(desk/"metadata", records(8))
    assert import_documents(desk, tmp_path/"mine")["notes"][0] == "2 documents have no usable row: scans/8.png, scans/9.png"


def test_no_document_is_taken_by_the_name_of_another(tmp_path):
    pages(tmp_path/"desk", *(f"2024/{n}.png" for n in range(6)), "new/7.png", "new/8.png", "new/9.png")
    asked = [f"{year}/{n}.png" for year in (2023, 2024) for n in range(3)] + ["a/7.png", "b\\7.png", "C:\\old\\8.png", "9", "2.png", "2024\\1", "2024/3", "2024/4.PNG"]
    as_csv(tmp_path/"desk"/"metadata", [{"file_name": name, "question": f"Total {n}?", "answers": f"{n}.00"} for n, name in enumerate(asked)])
    report = import_documents(tmp_path/"desk", tmp_path/"mine")
    found = {line["answers"][0]: line["file_name"] for split in ("train", "test") for line in lines(tmp_path/"mine", split)}
    assert found == {"3.00": "2024/0.png", "4.00": "2024/1.png", "5.00": "2024/2.png", "8.00": "new/8.png", "9.00": "new/9.png", "11.00": "2024/1.png",
                     "12.00": "2024/3.png", "13.00": "2024/4.png"}
    reasons = {int(skip["row"].partition(":")[2]) - 2: skip["reason"] for skip in report["skipped"]}
    assert reasons.keys() == {0, 1, 2, 6, 7, 10} and all("but other rows name that by another path; give the path from desk/" in reason for reason in reasons.values())
    assert "2 documents were found by name in another folder, such as new/8.png for 'C:\\\\old\\\\8.png'" in report["notes"]


def test_pages_of_one_split_are_not_those_of_another(tmp_path):
    pages(tmp_path/"desk", *(f"train/{n}.png" for n in range(3)), "test/3.png")
    for split, names in (("train", "012"), ("test", "123")): as_csv(tmp_path/"desk"/split/"metadata", [{"file_name": f"{n}.png", "question": "Total?", "answers": n} for n in names])
    report = import_documents(tmp_path/"desk", tmp_path/"mine")
    assert [line["file_name"] for line in lines(tmp_path/"mine", "test")] == ["3.png"] and len(report["skipped"]) == 2


def test_numbers_and_dates_of_parquet_are_as_a_person_writes_them(desk, tmp_path):
    (desk/"fields.csv").write_text("field,question\n" + "".join(f"{name},What is {name}?\n" for name in ("year", "day", "time", "part", "sum")))
    table = pd.DataFrame({"file_name": [f"scans/{n}.png" for n in range(10)], "year": 2020., "day": pd.Timestamp("2024-01-05"), "time": pd.Timestamp("2024-01-05 10:30"),
                          "part": np.float32(12.3), "sum": [[np.float64(1e15), 9.5]]*10})
    table.to_parquet(desk/"values.parquet")
    import_documents(desk, tmp_path/"mine")
    assert [line["answers"] for line in lines(tmp_path/"mine")][:5] == [["2020"], ["2024-01-05"], ["2024-01-05 10:30:00"], ["12.3"], ["1000000000000000.0", "9.5"]]


def test_names_that_are_not_utf8_cost_their_rows_alone(tmp_path):
    desk = tmp_path/"d\udcffsk"
    pages(desk, *(f"{n}.png" for n in range(3)), "caf\udce9/7.png", "caf\udce9/8.png")
    as_jsonl(desk/"metadata", [{"file_name": f"{n}.png", "question": "Total?", "answers": "9"} for n in (0, 1, 2, 7)]
             + [{"file_names": ["0.png", "1.png"], "document": "\ud800", "question": "Total?", "answers": "9"}, {"file_name": "none.png"}])
    report = import_documents(desk, tmp_path/"mine")
    assert report["train"]["questions"] + report["test"]["questions"] == 3 and report["source"].endswith("d\\xffsk")
    assert [skip["reason"] for skip in report["skipped"]][1:] == ["the path caf\\xe9/7.png is not UTF-8; rename it", "document is not valid Unicode"]
    assert "2 documents have no usable row: caf\\xe9/7.png, caf\\xe9/8.png" in report["notes"]
    assert json.loads((tmp_path/"mine"/"import.json").read_text(encoding="utf-8"))["skipped"] == report["skipped"]


def test_a_turn_without_a_speaker_costs_its_row_alone(desk, tmp_path):
    talks = [{"image": f"scans/{n}.png", "conversations": [{"from": ["human"] if n == 3 else "human", "value": "Total?"}, {"from": "gpt", "value": "9"}]} for n in range(10)]
    (desk/"talks.json").write_text(json.dumps(talks))
    report = import_documents(desk, tmp_path/"mine")
    assert [skip["row"] for skip in report["skipped"]] == ["desk/talks.json#4"] and "speaker" in report["skipped"][0]["reason"]


def test_pages_in_folders_of_splits_and_one_table(tmp_path):
    pages(tmp_path/"desk", *(f"{split}/{n}.png" for split in ("train", "test") for n in range(3)))
    as_csv(tmp_path/"desk"/"metadata", [{"file_name": f"{split}/{n}.png", "question": "Total?", "answers": "9"} for split in ("train", "test") for n in range(3)])
    report = import_documents(tmp_path/"desk", tmp_path/"mine")
    assert report["notes"] == [] and [line["file_name"] for line in lines(tmp_path/"mine", "test")] == ["0.png", "1.png", "2.png"]


def test_fields_elsewhere_and_pages_elsewhere(desk, tmp_path):
    (tmp_path/"labels").mkdir()
    (tmp_path/"labels"/"values.csv").write_text("document,total,date\n" + "".join(f"{n}.png,{n},\n" for n in range(10)))
    (tmp_path/"asked.csv").write_text(FIELDS)
    import_documents(tmp_path/"labels"/"values.csv", tmp_path/"mine", tmp_path/"asked.csv", desk)
    assert len(loaded(tmp_path/"mine", tmp_path)["train"]) == 16
    with pytest.raises(ValueError, match="No usable row in .*no question; give the table a column question, or write fields.csv"):
        import_documents(tmp_path/"labels"/"values.csv", tmp_path/"none", None, desk)


@pytest.mark.parametrize("table, fields, reason", [
    ("document,total\n1.png,9\n", FIELDS, "has no column for the field 'date' of fields.csv; it has document, total"),
    ("document,total,date,total\n1.png,9,,9\n", FIELDS, "has the column 'total' more than once"),
    ("document,total,date\n1.png,9,\n", "field,question\ntotal,A?\ntotal,B?\n", "the field 'total' is there already; name each field once"),
    ("document,total,date\n1.png,9,\n", "field,question\ntotal,\n", "field 'total': no question; ask in 1 to 4,000"),
    ("document,total,date\n1.png,9,\n", "field,question\n", "names no field"), ("document,total,date\n1.png,9,\n", "name,ask\na,b\n", "it needs field and question"),
    ("document,total,page\n1.png,9,1\n", "field,question\npage,Which?\n", "'page' is a column about the document or its questions; rename the field"),
    ("number,total,date\n1,9,\n", FIELDS, "No usable row in .*no document; name its file"),
    ("document,total,date\n", FIELDS, "No usable row in .*it is empty"), ("", FIELDS, "is empty; its first line names the columns"),
    ("document,total,date\n1.png,9\n", FIELDS, "2 cells, but the header has 3")])
def test_a_table_that_does_not_fit_its_fields_is_one_clear_line(desk, tmp_path, table, fields, reason):
    (desk/"fields.csv").write_text(fields)
    (desk/"values.csv").write_text(table)
    with pytest.raises(ValueError, match=reason) as error: import_documents(desk, tmp_path/"mine")
    assert "\n" not in str(error.value) and not (tmp_path/"mine").exists()


@pytest.mark.parametrize("name", [
    "file_name", "image", "imgname", "image_local_name", "image_path", "filename", "file", "path", "document", "ucsf_document_id", "file_names", "page",
    "split", "data_split", "benchmark", "language", "lang", "question", "query", "fields", "conversations", "messages"])
@pytest.mark.parametrize("column", [True, False])
def test_a_field_called_like_a_column_about_the_document_is_one_clear_line(desk, tmp_path, name, column):
    (desk/"fields.csv").write_text(f"field,question\ntotal,A?\n{name},B?\n")
    names = ["image_path" if name == "document" else "document", "total", *[name]*column]
    (desk/"values.csv").write_text(",".join(names) + "\n1.png" + ",9"*(len(names) - 1) + "\n")
    with pytest.raises(ValueError) as error: import_documents(desk, tmp_path/"mine")
    assert str(error.value) == (f"fields.csv: {name!r} is a column about the document or its questions; rename the field in fields.csv and in "
                                f"values.csv, for example to '{name}_value'") and not (tmp_path/"mine").exists()


@pytest.mark.parametrize("name", ["label", "answer", "id", "field", "date", "Language", "page_value"])
def test_other_names_of_fields_are_free(desk, tmp_path, name):
    (desk/"fields.csv").write_text(f"field,question\n{name},B?\n")
    (desk/"values.csv").write_text(f"document,{name}\n" + "".join(f"{n}.png,{n}\n" for n in range(10)))
    import_documents(desk, tmp_path/"mine")
    rows = lines(tmp_path/"mine")
    assert len(rows) == 8 and all(row["answers"] == [Path(row["file_name"]).stem] and row["field"] == name for row in rows)


def test_a_value_in_an_object_of_fields_may_be_called_like_a_column(desk, tmp_path):
    (desk/"fields.csv").write_text("field,question\nlanguage,Which language?\n")
    (desk/"metadata.jsonl").write_text("".join(json.dumps({"file": f"{n}.png", "fields": {"language": f"l{n}"}}) + "\n" for n in range(10)))
    import_documents(desk, tmp_path/"mine")
    rows = lines(tmp_path/"mine")
    assert len(rows) == 8 and all(row["answers"] == [f"l{Path(row['file_name']).stem}"] and "language" not in row for row in rows)


@pytest.mark.parametrize("content, reason", [("field,question\n".encode("utf-16"), None), ("field;question\nn;Straße?\n".encode("cp1252"), "CSV UTF-8"),
                                             (b'field,question\na,"B?\n', "unexpected end of data"), (b"\0\1\2\3", "it needs field and question|names no field|is empty")])
def test_encodings_of_fields(tmp_path, content, reason):
    (tmp_path/"fields.csv").write_bytes(content if reason else "field;question\nn;Straße?\n".encode("utf-16"))
    if reason is None: assert read_fields(tmp_path/"fields.csv") == {"n": "Straße?"}
    else:
        with pytest.raises(ValueError, match=reason): read_fields(tmp_path/"fields.csv")


def test_every_bad_row_is_listed_and_the_good_ones_are_used(desk, tmp_path):
    (desk/"bad").mkdir()
    for n, (content, _) in enumerate(BROKEN.values()): (desk/"bad"/f"{n}.pdf").write_bytes(content)
    (desk/"bad"/"several.pdf").write_bytes(saved("PDF", "1", "2"))
    (desk/"scans"/"deep").mkdir()
    drawn("x").save(desk/"scans"/"deep"/"1.png")
    (desk/"out.png").symlink_to("/etc/hosts")
    bad = [{"file_name": f"bad/{n}.pdf", "question": "Total?", "answers": "9"} for n in range(len(BROKEN))]
    good = {"file_name": "scans/2.png", "question": "Total?", "answers": "9"}
    wrong = [good | change for change in ({"file_name": "bad/several.pdf", "evidence_pages": "[3]"}, {"file_name": "bad/several.pdf", "page": "3"}, {"page": "first"}, {"question": " "},
                                          {"file_name": "none.png"}, {"file_name": "x/1.png"}, {"file_name": "out.png"}, {"file_name": ""}, {"benchmark": "vqa"},
                                          {})]
    as_csv(desk/"metadata", records() + bad + wrong)
    report = import_documents(desk, tmp_path/"mine")
    assert len(report["skipped"]) == len(bad) + len(wrong) and report["train"]["questions"] + report["test"]["questions"] == 10
    reasons = [skip["reason"] for skip in report["skipped"]][len(bad):]
    for found, reason in zip(reasons, ("evidence on page 3, but", "has no page 3", "not a page number", "no question", "document 'none.png' not found",
                                       "2 documents are called 'x/1.png'", "leaves the folder", "no document; name its file", "unknown benchmark",
                                       "this question is there already, with the same document and page")): assert reason in found
    assert all(skip["row"].startswith("desk/metadata.csv:") for skip in report["skipped"])
    assert json.loads((tmp_path/"mine"/"import.json").read_text())["skipped"] == report["skipped"]
    loaded(tmp_path/"mine", tmp_path)


def test_a_row_that_says_nothing_of_a_field_is_listed(desk, tmp_path):
    (desk/"fields.csv").write_text(FIELDS)
    as_jsonl(desk/"metadata", [{"file_name": f"scans/{n}.png", "fields": {"total": "9.00"} if n else {"total": "1", "tax": "2"}} for n in range(10)])
    report = import_documents(desk, tmp_path/"mine")
    reasons = {skip["row"]: skip["reason"] for skip in report["skipped"]}
    assert len(reasons) == 10 and reasons["desk/metadata.jsonl:2 date"] == "zero answers"
    assert "desk/metadata.jsonl: not read: fields.tax" in report["notes"] and report["train"]["questions"] == 8


def test_what_cannot_be_imported_is_one_clear_line(desk, tmp_path):
    for source, reason in ((tmp_path/"none", "neither a table nor a folder"), (desk, "holds no table of questions"), (desk/"scans"/"1.png", "is not a table; known are")):
        with pytest.raises((ValueError, OSError), match=reason): import_documents(source, tmp_path/"mine")
    as_csv(desk/"one", records())
    as_csv(desk/"two", records())
    with pytest.raises(ValueError, match="holds several tables .one.csv, two.csv.; give one of them"): import_documents(desk, tmp_path/"mine")
    for target in (desk, desk/"one.csv"):
        with pytest.raises(ValueError, match="is there already"): import_documents(desk/"one.csv", target)
    as_csv(desk/"one", records(1))
    with pytest.raises(ValueError, match="all questions are about one document"): import_documents(desk/"one.csv", tmp_path/"mine")
    for name, content, reason in (("a.json", "{", "is not JSON"), ("b.json", '{"data": 5}', "neither a list"), ("c.parquet", "x", "is not Parquet"), ("d.csv", '"', "save the file")):
        (desk/name).write_text(content)
        with pytest.raises(ValueError, match=reason): read_table(desk/name)


def test_a_folder_may_be_imported_into_itself_again_and_again(desk):
    as_csv(desk/"metadata", [row | {"file_name": row["file_name"].removeprefix("scans/")} for row in records()])
    first, again = import_documents(desk, desk/"one"), import_documents(desk, desk/"two")
    assert first["train"] == again["train"] and not again["skipped"]


def test_an_interruption_leaves_nothing_half_done(desk, tmp_path, monkeypatch):
    as_csv(desk/"metadata", records())
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr("docvlm.inputs.tables.shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"): import_documents(desk, tmp_path/"mine")
    assert sorted(os.listdir(tmp_path)) == ["desk"]


def test_the_command_says_what_it_left_out(desk, tmp_path, capsys):
    as_csv(desk/"metadata", records() + [{"file_name": "none.png", "question": "Total?", "answers": "9"}]*30)
    cli.import_table(str(desk), str(tmp_path/"mine"))
    told = capsys.readouterr().out
    assert told.count("skipped desk/metadata.csv:") == 20 and "10 more are listed in" in told and "test/ was made: 2 of 10 documents" in told
    assert "train/: 8 documents, 8 questions, 0 of them with an empty answer" in told and f"docvlm-study --documents={tmp_path/'mine'}" in told
    with pytest.raises(SystemExit): cli.import_table(str(desk), str(tmp_path/"mine"))
    assert "is there already" in capsys.readouterr().err


def test_the_study_points_to_the_import(desk, tmp_path):
    as_csv(desk/"metadata", records())
    with pytest.raises(FileNotFoundError, match="docvlm-import makes them from a table"): load_folder(desk, tmp_path/"stored")
    (desk/"train").mkdir()
    with pytest.raises(FileNotFoundError, match="or let docvlm-import make it from your table"): load_folder(desk, tmp_path/"stored")


FOLDERS = sorted(path.parent.parent.name for path in REAL.glob("*/train/metadata.jsonl"))


@pytest.mark.skipif(not FOLDERS, reason="shared/real is not beside this checkout")
@pytest.mark.parametrize("name", FOLDERS)
def test_real_folders_are_imported_without_loss(name, tmp_path):
    report = import_documents(REAL/name, tmp_path/"mine")
    assert not report["skipped"]
    for split in ("train", "test"):
        mine, theirs = (len((place/split/"metadata.jsonl").read_text().splitlines()) for place in (tmp_path/"mine", REAL/name))
        assert mine == theirs == report[split]["questions"]


@pytest.mark.skipif(not (REAL/"pdfs").is_dir(), reason="shared/real/pdfs is not beside this checkout")
def test_real_invoices_in_pdf_with_a_table_of_fields(tmp_path):
    wanted, values = {"amount": "What is the total amount?", "date": "What is the invoice date?"}, {}
    for split in ("train", "test"):
        for row in map(json.loads, (REAL/"invoices"/split/"metadata.jsonl").read_text().splitlines()):
            place = re.fullmatch(r"(.*)_p(\d+).png", row["file_name"]).groups()
            for field, question in wanted.items():
                if row["question"] == question: values.setdefault(place, {})[field] = row["answers"][0]
    (tmp_path/"fields.csv").write_text("field;question\n" + "".join(f"{field};{question}\n" for field, question in wanted.items()))
    with (tmp_path/"values.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows([("document", "page", *wanted), *((*place, *map(found.get, wanted)) for place, found in values.items())])
    report = import_documents(tmp_path/"values.csv", tmp_path/"mine", pages=REAL/"pdfs")
    assert not report["skipped"] and report["train"]["documents"] + report["test"]["documents"] == len({name for name, _ in values}) > 5
    rows = loaded(tmp_path/"mine", tmp_path)
    assert all(Image.open(row["images"][0]).size[0] > 200 for row in rows["train"])
