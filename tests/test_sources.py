"""The benchmarks as the hub has them: five schemas, in parquet that `datasets` writes and reads, from folders and from a hub.

The hub is a stand-in on this machine that speaks the parts of its protocol which the client uses; the client runs in a
process of its own (this file as a script), since it reads the hub's address once.
"""
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import datasets.config
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from docvlm.analysis.errors import page_image
from docvlm.data import limit_questions
from docvlm.inputs import hub
from docvlm.inputs.images import distinct_pages, pages_of
from docvlm.inputs.leakage import find_leaks
from docvlm.files import StudyError
from docvlm.core import open_study
from docvlm.inputs.sources import INVOICE_PROXY, ROW_FEATURES, convert_hub, document_types, read_sources

REPO = Path(__file__).parents[1]
SOURCES = {source.name: source for source in read_sources()}
text, texts, number = Value("string"), List(Value("string")), Value("int64")
DOCVQA = {"questionId": text, "question": text, "question_types": texts, "image": Image(), "docId": number,
          "ucsf_document_id": text, "ucsf_document_page_no": text, "answers": texts, "data_split": text}
SCHEMAS = {  # of the cards, by repository and configuration
    ("lmms-lab/DocVQA", "DocVQA"): DOCVQA,
    ("HuggingFaceM4/DocumentVQA", ""): {**{name: kind for name, kind in DOCVQA.items() if name != "data_split"},
                                        "questionId": Value("int32"), "docId": Value("int32")},
    ("lmms-lab/DocVQA", "InfographicVQA"): {
        "questionId": text, "question": text, "answers": texts, "answer_type": texts, "image": Image(), "image_url": text,
        "operation/reasoning": texts, "ocr": text, "data_split": text},
    ("lmms-lab/ChartQA", ""): {"type": text, "question": text, "answer": text, "image": Image()},
    ("HuggingFaceM4/ChartQA", ""): {"image": Image(), "query": text, "label": texts,
                                    "human_or_machine": ClassLabel(names=["human", "machine"])},
    ("lmms-lab/MP-DocVQA", ""): {"questionId": text, "question": text, "doc_id": text, "page_ids": text, "answers": text,
                                 "answer_page_idx": text, "data_split": text, **{f"image_{n}": Image() for n in range(1, 21)}},
    ("jordyvl/DUDE_subset_100val", ""): {"questionId": text, "question": text, "answer": text, "images": List(Image())}}


def example(source, n):
    "Row `n` of a source: two questions a page, the second of an odd kind."
    page, odd, hidden = n // 2, n % 2, source.split == "submission"
    return {"questionId": 100 + n, "question": "Which invoice?" if odd else "What is the date?", "query": f"Bar {n}?",
            "docId": page, "question_types": ["table/list", "handwritten"] if odd else ["form"],
            "ucsf_document_id": f"abcd000{page}", "ucsf_document_page_no": "1",
            "answers": None if hidden else [f"{n}", f"no. {n}"], "data_split": source.hub_split,
            "answer_type": None if hidden else ["multiple spans"], "image_url": f"https://example.org/{page}.jpeg",
            "operation/reasoning": ["counting"] if odd else [], "ocr": "[]", "type": ["human_test", "augmented_test"][odd],
            "answer": f"{n}", "label": [f"{n}"], "human_or_machine": odd, "doc_id": f"abcd000{page}",
            "page_ids": f"['abcd000{page}_p4', 'abcd000{page}_p5']", "answer_page_idx": "1", **images_of(page)}


def images_of(page):
    "The images of a page's row: one, or two pages in twenty columns or in a list."
    image, other = (PILImage.new("RGB", (30 + page, 20 + n), (page, 90, 200)) for n in range(2))
    return {"image": image, "images": [image, other], "image_1": image, "image_2": other} | {f"image_{n}": None for n in range(3, 21)}


def write_parquet(folder, source, rows=4, shards=2, drop=()):
    "A source's files as its repository has them: rows over shards under the pattern of data/sources.csv."
    schema = {name: kind for name, kind in SCHEMAS[source.hub_id, source.config].items() if name not in drop}
    for shard in range(shards):
        numbers = range(shard*rows//shards, (shard + 1)*rows//shards)
        columns = {name: [example(source, n)[name] for n in numbers] for name in schema}
        if schema.get("questionId") == text: columns["questionId"] = list(map(str, columns["questionId"]))
        if schema.get("answers") == text: columns["answers"] = list(map(repr, columns["answers"]))
        path = folder/source.files.replace("*", f"{shard:05d}-of-{shards:05d}")
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns, features=Features(schema)).to_parquet(path)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path/"datasets")


def copy_of(name, folder, rows=4, **options):
    "A local copy of a source, as data/sources.csv would name it."
    return replace(SOURCES[name], hub_id=str(write_parquet(folder/"copy", SOURCES[name], rows, **options)), samples=rows)


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if (source.hub_id, source.config) in SCHEMAS])
def test_every_source_becomes_rows_of_one_schema(tmp_path, name):
    source = copy_of(name, tmp_path)
    rows, skipped, commit = hub.load_hub(source)
    assert rows.features == ROW_FEATURES and len(rows) == 4 and not skipped and commit == "local"
    assert len(set(rows["question_id"])) == 4 and len(set(rows["doc_id"])) == 2, "two questions a page"
    assert rows[2]["images"][0].size == (31, 20) and set(rows["split"]) == {source.split}
    if source.split == "submission": assert rows["answers"][:] == [[]]*4
    else: assert rows["answers"][3][0] == "3"
    pages = {"mpdocvqa": [5, 6], "dude": [1, 2]}.get(source.benchmark, [1])
    assert rows["pages"][:] == [pages]*4 and rows["page_count"][0] == len(rows[0]["images"]) == len(pages)
    assert rows["evidence_pages"][0] == ([6] if source.benchmark == "mpdocvqa" else [])
    expected = {"mpdocvqa": [[], []], "dude": [[], []], "docvqa": [["form"], ["table/list", "handwritten"]], "chartqa": [["human"], ["augmented"]],
                "infovqa": [["multiple spans"], ["multiple spans", "counting"]]}[source.benchmark]
    if source.split != "submission": assert rows["doc_types"][:2] == expected
    first = hub.first_look(source, 2)
    assert first["question_id"][:] == rows["question_id"][:2] and first[0]["images"][0].size == (30, 20)


@pytest.mark.parametrize("numbers", [["3", "3", "12", "12"], [3, 3, 12, 12]])
def test_pages_of_one_document_are_asked_apart_and_count_as_one_document(tmp_path, numbers):
    source = copy_of("DocVQA validation", tmp_path)
    whole = hub.load_dataset("parquet", data_files=[str(path) for path in (tmp_path/"copy").rglob("*.parquet")], split="train")
    changed = whole.remove_columns(["ucsf_document_id", "ucsf_document_page_no"])
    for name, values in (("ucsf_document_id", ["abcd0000"]*4), ("ucsf_document_page_no", numbers)): changed = changed.add_column(name, values)
    rows, skipped = convert_hub(changed, source)
    name = "docvqa-test-abcd0000"
    assert not skipped and set(rows["doc_id"][:]) == {name}, "one cluster of the bootstrap"
    assert rows["pages"][:] == [[3], [3], [12], [12]] and set(rows["page_count"][:]) == {1}
    read = pages_of(rows)
    assert {key: page["rows"] for key, page in read.items()} == {f"{name} page 3": [0, 1], f"{name} page 12": [2, 3]}
    assert len({page["keys"] for page in read.values()}) == 2 and list(distinct_pages(rows)) == list(read)
    assert len(limit_questions(rows, 2, 0)) == 2 and find_leaks(rows, rows)["test_pages"] == 2
    assert [page_image(row).size for row in (rows[0], rows[2])] == [(30, 20), (31, 20)]


def test_invoices_from_the_librarys_table_else_by_a_proxy_that_says_so(tmp_path, monkeypatch):
    source = copy_of("DocVQA validation", tmp_path)
    monkeypatch.setattr(hub, "root", lambda: tmp_path)
    (tmp_path/"data").mkdir()
    (tmp_path/"data/ucsf_metadata.csv").write_text("id,type\nABCD0000,invoice\nzzzz9999,letter\n")
    groups = [document_types(row) for row in hub.load_hub(source)[0]]
    assert groups[0] == ["forms", "invoices"] and groups[1] == ["handwriting", "invoices", "tables"], "the document is an invoice"
    assert groups[2] == ["forms"] and groups[3] == ["handwriting", INVOICE_PROXY, "tables"], "nobody knows this one"
    assert "proxy" in INVOICE_PROXY
    (tmp_path/"data/ucsf_metadata.csv").write_text("id,type\nabcd0000,letter\nabcd0001,letter\n")
    assert not any("invoice" in group for row in hub.load_hub(source)[0] for group in document_types(row))


@pytest.mark.parametrize("drop", [("answers",), ("image",), ("questionId", "question_types")])
def test_a_missing_column_is_named_with_those_there_are(tmp_path, drop):
    source, missing = copy_of("DocVQA validation", tmp_path, drop=drop), re.escape(str(list(drop)))
    with pytest.raises(StudyError, match=rf"DocVQA validation.*lacks the columns {missing}; it has \["):
        hub.check_sources([source])
    with pytest.raises(StudyError, match="lacks the columns"): hub.load_hub(source)


def test_rows_without_answers_are_skipped_and_listed(tmp_path):
    source = SOURCES["DocVQA validation"]
    files = [str(p) for p in write_parquet(tmp_path, SOURCES["DocVQA test"]).rglob("*.parquet")]
    hidden = hub.load_dataset("parquet", data_files=files, split="train")
    rows, skipped = convert_hub(hidden, source)
    assert len(rows) == 0 and [skip["reason"] for skip in skipped] == ["no answers"]*4


def test_a_copy_in_part_is_not_taken_for_the_whole(tmp_path):
    source = copy_of("ChartQA test", tmp_path)
    next((tmp_path/"copy/data").glob("*00000-of*")).unlink()
    with pytest.raises(StudyError, match="2 rows, but data/sources.csv says 4: the copy is incomplete"): hub.load_hub(source)


def test_a_broken_file_is_explained(tmp_path):
    source = copy_of("ChartQA test", tmp_path)
    file = next((tmp_path/"copy/data").glob("*00001-of*"))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(StudyError, match="ChartQA test: .* could not be read.*hf download --repo-type dataset"):
        hub.load_hub(source)


class Hub(BaseHTTPRequestHandler):
    "Folders of `server.repositories` as repositories; some misbehave as their names say."
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass

    def say(self, body, status=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items(): self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)

    def fail(self, status, code): self.say({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def do_POST(self):
        asked = unquote(self.rfile.read(int(self.headers["Content-Length"])).decode().replace("+", " "))
        self.answer([part.removeprefix("paths=") for part in asked.split("&") if part.startswith("paths=")])

    def do_GET(self): self.answer([])

    do_HEAD = do_GET

    def answer(self, paths):
        parts = unquote(urlsplit(self.path).path).strip("/").removeprefix("api/").split("/")[1:]  # without "datasets"
        name, (verb, *rest) = parts[1], parts[2:] or ["revision", "main"]
        folder, revision, path = self.server.repositories/name, rest[0], "/".join(rest[1:])
        self.server.log.append((self.command, name, verb, path, self.headers.get("Range")))
        if name == "Gated": return self.fail(401, "GatedRepo")
        if name == "Gone": return self.fail(404, "RevisionNotFound")
        if not folder.is_dir(): return self.fail(404, "RepoNotFound")
        entry = lambda p: {"type": "directory" if p.is_dir() else "file", "path": p.relative_to(folder).as_posix(),
                           "oid": f"{abs(hash(p)):040x}"[:40], "size": 0 if p.is_dir() else p.stat().st_size}
        if verb == "revision": return self.say({"id": f"lab/{name}", "sha": revision, "siblings": []})
        if verb == "paths-info": return self.say([entry(folder/p) for p in paths if (folder/p).exists()])
        if verb == "tree":
            pattern = "**/*" if "recursive=true" in self.path.lower() else "*"
            return self.say([entry(p) for p in sorted((folder/path).glob(pattern))])
        if not (folder/path).is_file(): return self.fail(404, "EntryNotFound")
        self.send_file(name, path, (folder/path).read_bytes(), revision)

    def send_file(self, name, path, content, commit):
        first = self.command == "GET" and (name, path) not in self.server.sent
        if first: self.server.sent.add((name, path))
        if "00001-of" in path and (name == "Down" or name == "Falters" and first): return self.fail(500, "InternalError")
        headers = {"ETag": f'"{abs(hash((name, path))):040x}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            start, end = asked.removeprefix("bytes=").split("-")
            end = min(int(end or len(content)), len(content) - 1)
            part = content[int(start):end + 1]
            return self.say(part, 206, Content_Range=f"bytes {start}-{end}/{len(content)}", **headers)
        if name == "Cuts" and first:  # half of the file, then silence
            self.close_connection = True
            return self.say(content[:len(content)//2], Content_Length=len(content), **headers)
        self.say(content, **headers)


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    "What the client said and what the hub was asked, by scenario; one process visits them all."
    folder = tmp_path_factory.mktemp("hub")
    for name in ("Good", "Falters", "Down", "Wrong"):
        write_parquet(folder/"lab"/name, SOURCES["DocVQA validation"], drop=("answers",) if name == "Wrong" else ())
    write_parquet(folder/"lab/Good", SOURCES["DocVQA test"])
    write_parquet(folder/"lab/Cuts", SOURCES["ChartQA test"], shards=1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.log, server.sent = folder/"lab", [], set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    env = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(folder/"home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "PYTHONPATH": str(REPO)}
    for name in ("HF_TOKEN", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"): env.pop(name, None)
    done = subprocess.run([sys.executable, __file__], env=env, cwd=REPO, capture_output=True, text=True, timeout=300)
    server.shutdown()
    assert done.returncode == 0, done.stderr[-4000:]
    return SimpleNamespace(**json.loads(done.stdout.splitlines()[-1]), log=server.log)


def client():
    "The visit: prints what came of each scenario."
    docvqa = lambda name: replace(SOURCES["DocVQA validation"], hub_id=f"lab/{name}", samples=4)
    def said(call):
        try: return call()
        except StudyError as error: return str(error)
    good, cuts = docvqa("Good"), replace(SOURCES["ChartQA test"], hub_id="lab/Cuts", samples=4)
    found = {"look": hub.first_look(good, 1)["question_id"][:], "need": hub.check_sources([good])}
    roomy, hub.free_disk_bytes = hub.free_disk_bytes, lambda _: 10
    found["full_disk"] = said(lambda: hub.check_sources([good]))
    hub.free_disk_bytes = roomy
    load = lambda source: said(lambda: (lambda rows, _, commit: [len(rows), commit])(*hub.load_hub(source)))
    hub.constants.DOWNLOAD_CHUNK_SIZE = 256  # written as it arrives, where 10 MB would be lost with the connection
    found["good"], found["cuts"] = load(good), load(cuts)
    found |= {key: load(docvqa(name)) for key, name in (("falters", "Falters"), ("falters_again", "Falters"), ("down", "Down"))}
    found["complaints"] = said(lambda: hub.check_sources([good, *map(docvqa, ("Gated", "Gone", "Nowhere", "Wrong"))]))
    hub.constants.HF_HUB_OFFLINE = True
    found |= {"offline": load(good), "offline_part": load(docvqa("Down")), "offline_never": load(docvqa("Unseen")),
              "offline_need": hub.check_sources([good])["download"]}
    print(json.dumps(found))


def fetched(visit, name, part=""):
    "Files of a repository that were asked for."
    return [path for command, repository, verb, path, _ in visit.log
            if (command, repository, verb) == ("GET", name, "resolve") and part in path]


@pytest.mark.parametrize("size", [(6100, 30), (30, 6100), (201, 1)])
def test_a_page_that_the_processor_refuses_is_named_before_training(tmp_path, size):
    from docvlm.inputs.leakage import fingerprints
    source = SOURCES["ChartQA test"]
    columns = {name: [example(source, n)[name] for n in range(4)] for name in SCHEMAS["lmms-lab/ChartQA", ""]}
    columns["image"][2] = PILImage.new("RGB", size)
    rows, _ = convert_hub(Dataset.from_dict(columns, features=Features(SCHEMAS["lmms-lab/ChartQA", ""])), source)
    with pytest.raises(ValueError, match=rf"Page {rows['doc_id'][2]}: image of {size[0]}×{size[1]} pixels: one side is over 200 times "
                                         "the other; crop it.*data/sources.csv"): fingerprints(rows)
    assert len(fingerprints(rows.select([0, 1, 3]))) == 2, "the other pages are read"


def test_first_look_and_sizes_before_any_download(visit):
    assert visit.look == ["docvqa-test-100"]
    assert visit.need["download"] > 1000 and visit.need["unpack"] == SOURCES["DocVQA validation"].decoded_bytes
    assert "GB more on the disk" in visit.full_disk and "HF_HOME" in visit.full_disk


def test_the_pinned_commit_is_loaded_and_only_the_files_of_the_split(visit):
    assert visit.good == [4, SOURCES["DocVQA validation"].revision]
    assert fetched(visit, "Good", "validation-") and not fetched(visit, "Good", "test-")


def test_a_cut_connection_goes_on_where_it_broke(visit):
    assert visit.cuts[0] == 4
    ranges = [asked for command, name, verb, _, asked in visit.log if (command, name, verb) == ("GET", "Cuts", "resolve")]
    assert len(ranges) == 2 and ranges[0] is None and ranges[1].startswith("bytes=") and ranges[1] != "bytes=0-"


def test_an_interrupted_download_goes_on_with_the_files_that_are_missing(visit):
    assert "Falters" in visit.falters and "did not provide it" in visit.falters and visit.falters_again[0] == 4
    assert len(fetched(visit, "Falters", "00000-of")) == 1 and len(fetched(visit, "Falters", "00001-of")) == 2


def test_all_complaints_come_at_once_each_with_its_remedy(visit):
    head, *lines = visit.complaints.splitlines()
    assert head == "4 of 5 sources are not available:" and len(lines) == 4
    expected = (("lab/Gated is gated", "Accept its terms", "hf auth login"),
                ("lab/Gone no longer has the commit 278bbe6", "data/sources.csv"),
                ("lab/Nowhere does not exist, or is private", "hub_id"), ("lab/Wrong", "lacks the columns ['answers']"))
    for line, words in zip(lines, expected):
        assert line.startswith("DocVQA validation") and all(word in line for word in words), line
    assert not fetched(visit, "Gated") and not visit.complaints.count("Traceback")


def test_offline_what_is_there_is_used_and_what_is_not_is_said(visit):
    assert visit.offline == visit.good and visit.offline_need == 0
    for message in (visit.offline_part, visit.offline_never):
        assert "is not completely on this disk" in message and "unset HF_HUB_OFFLINE" in message
        assert "hf download --repo-type dataset lab/" in message
    assert visit.down.startswith("DocVQA validation: lab/Down")


def test_submission_file_has_the_servers_format(tmp_path, monkeypatch):
    from docvlm import evaluation as submission
    source = copy_of("DocVQA test", tmp_path, rows=2)
    monkeypatch.setattr(hub, "read_sources", lambda: [source])
    study = open_study("smoke")
    path = submission.write_submission(study, "docvqa", None)
    try: answers = json.loads(path.read_text(encoding="utf-8"))
    finally: path.unlink()
    assert [set(answer) for answer in answers] == [{"questionId", "answer"}]*2 and path.name == "docvqa-base.json"
    assert [answer["questionId"] for answer in answers] == [100, 101] and all(isinstance(a["answer"], str) for a in answers)
    with pytest.raises(ValueError, match="'chartqa' has no hidden test set; choose one of: docvqa"):
        submission.write_submission(study, "chartqa", None)


def test_model_card_is_read_by_the_hubs_own_reader(tmp_path):
    from huggingface_hub import ModelCard

    from docvlm.report import model_card
    cell = {"metric": "anls", "questions": 5349, "images": 1286, "baseline": {"value": .5, "ci95": [.4, .6]},
            "ours": {"value": .6, "ci95": [.5, .7], "per_seed": {"42": .61}},
            "delta": {"value": .1, "ci95": [0, .2], "p_value": .01}}
    trained = {"model": {"lora_rank": 16, "target_modules": ["q_proj"]}, "seeds": {"42": {"adapter_digest": "0123"}}}
    def read(preset):
        meta, body = model_card(open_study(preset), 42, {"benchmarks": {"docvqa": cell}}, trained)
        (tmp_path/"README.md").write_text(f"---\n{json.dumps(meta)}\n---\n{body}", encoding="utf-8")
        return ModelCard.load(tmp_path/"README.md").data
    card = read("qwen2-vl-2b")
    result, = card.eval_results
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("lmms-lab/DocVQA", "DocVQA", "validation")
    assert result.dataset_revision == SOURCES["DocVQA validation"].revision
    assert (result.metric_type, result.metric_value) == ("anls", .61)
    assert card.base_model == "Qwen/Qwen2-VL-2B-Instruct" and card.library_name == "peft"
    assert read("nano").base_model is None, "data/nano is no model of the hub"


if __name__ == "__main__": client()
