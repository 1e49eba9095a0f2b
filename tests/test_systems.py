"Other systems: servers that misbehave lose nothing, a real one gives the study's own answers, OCR rules read a real receipt."
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest

from docvlm.core import StudyError, get_preset, open_study, read_json
from docvlm.data import load_splits
from docvlm.endpoint import Endpoint, endpoint_answers

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
RECEIPTS = ROOT.parent/"shared/real/receipts"
KEY = "sk-test-6f1d-never-stored"


def completion(text, **usage):
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": usage or None,
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]}


@contextmanager
def serve(reply):
    "A local server; `reply(question, number)` gives (status, body, headers); what it was asked is kept."
    log = SimpleNamespace(questions=[], keys=set(), times=[], now=0, most=0, lock=threading.Lock())

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_): pass

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            image, text = request["messages"][0]["content"]
            assert request["temperature"] == 0 and image["image_url"]["url"].startswith("data:image/png;base64,")
            with log.lock:
                log.questions.append(text["text"]); log.times.append(time.monotonic())
                log.keys.add(self.headers["Authorization"])
                log.now += 1; log.most = max(log.most, log.now); number = len(log.questions)
            status, body, *headers = reply(text["text"], number)
            with log.lock: log.now -= 1
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            try:
                self.send_response(status)
                headers += [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
                for header in headers: self.send_header(*header)
                self.end_headers(); self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError): pass  # the client has given up

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}/v1", log
    finally: server.shutdown(); server.server_close()


@pytest.fixture(scope="module")
def rows(): return load_splits(open_study("smoke"))["test"].select(range(8))


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return SimpleNamespace(preset=get_preset("smoke"), run_dir=tmp_path)


def endpoint(url, **settings): return Endpoint(url, "m", **({"retries": 0, "timeout_s": 10, "concurrency": 2} | settings))


def test_answers_are_asked_once_and_the_key_is_only_sent(study, rows):
    with serve(lambda question, number: (200, completion(question[::-1], prompt_tokens=9, completion_tokens=2))) as (url, log):
        first = endpoint_answers(study, endpoint(url), rows)
        again = endpoint_answers(study, endpoint(url), rows)
    assert first.prediction.tolist() == [question[::-1].strip() for question in rows["question"]] and first.equals(again)
    assert len(log.questions) == len(rows) and first.failure.isna().all() and (first.prompt_tokens == 9).all()
    assert log.keys == {f"Bearer {KEY}"} and 1 <= log.most <= 2
    kept = "".join(path.read_text() for path in study.run_dir.rglob("*") if path.is_file())
    assert KEY not in kept and "data:image" not in kept and len(kept.splitlines()) >= len(rows)


def test_a_busy_server_is_asked_again(study, rows):
    soon = ("Retry-After-Ms", "10")
    refusals = [429, 429, 500]
    def reply(question, number): return (refusals[number - 1], {}, soon) if number <= 3 else (200, completion("yes"))
    with serve(reply) as (url, log):
        found = endpoint_answers(study, endpoint(url, retries=3, concurrency=1), rows.select(range(2)))
    assert found.prediction.tolist() == ["yes", "yes"] and len(log.questions) == 5
    assert found.prompt_tokens.isna().all(), "no usage is no zero"


@pytest.mark.parametrize("reply, kind", [
    ((429, {"error": {"message": "slow"}}), "HTTP 429"), ((500, "boom"), "HTTP 500"), ((400, {"error": "big"}), "HTTP 400"),
    *[((200, garbage), "unreadable reply") for garbage in (
        "<html>busy</html>", "[1, 2]", "null", '{"choices": [{', {"choices": []}, completion(None), completion(["a"]))]])
def test_a_failure_is_counted_and_the_rest_is_kept(study, rows, reply, kind):
    bad = rows["question"][1]
    with serve(lambda question, number: reply if question == bad else (200, completion("fine"))) as (url, log):
        found = endpoint_answers(study, endpoint(url), rows)
    failed = [question == bad for question in rows["question"]]
    assert found.failure.fillna("").tolist() == [kind if f else "" for f in failed]
    assert found.prediction.tolist() == ["" if f else "fine" for f in failed]


def test_a_server_that_never_answers_is_a_counted_time_out_and_the_rest_is_kept(study, rows):
    slow, ask_again = rows["question"][0], []
    def reply(question, number):
        if question == slow and not ask_again: time.sleep(1)
        return 200, completion("ok")
    with serve(reply) as (url, log):
        found = endpoint_answers(study, endpoint(url, timeout_s=0.3), rows)
        assert set(found.failure.dropna()) == {"time-out"} and (found.prediction == "ok").any()
        before = len(log.questions); ask_again.append(True)
        assert endpoint_answers(study, endpoint(url), rows).failure.isna().all()
        assert len(log.questions) - before == found.failure.notna().sum()


def test_a_refused_key_stops_at_once_and_is_not_repeated(study, rows):
    with serve(lambda question, number: (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})) as (url, log):
        with pytest.raises(StudyError, match="refuses model 'm'") as stopped:
            endpoint_answers(study, endpoint(url, concurrency=1), rows)
    assert KEY not in str(stopped.value) and len(log.questions) <= 2


def test_answers_under_way_when_a_run_stops_are_kept(study, rows):
    slow = rows["question"][0]
    def reply(question, number):
        if question != slow: return 401, {"error": {"message": "no"}}
        time.sleep(0.5)
        return 200, completion("paid for")
    with serve(reply) as (url, log), pytest.raises(StudyError): endpoint_answers(study, endpoint(url), rows)
    assert "paid for" in "".join(path.read_text() for path in study.run_dir.rglob("*.jsonl"))


def test_a_dead_server_stops_the_run(study, rows, monkeypatch):
    monkeypatch.setattr("docvlm.endpoint.MOST_FAILURES", 4)
    with socket.socket() as unused: unused.bind(("127.0.0.1", 0)); port = unused.getsockname()[1]
    with pytest.raises(StudyError, match=r"4 requests in a row failed .* \(no connection: 4\).*run the same command"):
        endpoint_answers(study, endpoint(f"http://127.0.0.1:{port}/v1"), rows)


def test_requests_keep_the_pace(study, rows):
    with serve(lambda question, number: (200, completion("ok"))) as (url, log):
        endpoint_answers(study, endpoint(url, concurrency=4, requests_per_minute=600), rows.select(range(4)))
    assert max(log.times) - min(log.times) >= 0.25, "three gaps of 0.1 s, less what the connection takes"


@pytest.fixture(scope="module")
def transformers_server(tmp_path_factory):
    with socket.socket() as free: free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve")/"log"
    with log.open("w") as out:
        command = [BIN/"transformers", "serve", "data/nano", "--device", "cpu", "--dtype", "float32",
                   "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        try:
            for _ in range(600):
                assert server.poll() is None, log.read_text()[-2000:]
                try: urlopen(f"http://127.0.0.1:{port}/health", timeout=5); break
                except OSError: time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally: server.terminate(); server.wait(30)


def test_transformers_serve_answers_as_the_study_does(transformers_server, study, rows):
    from docvlm.answering import answer_rows
    from docvlm.model import load_base, load_processor
    from docvlm.features import cache_features
    own, few = open_study("smoke"), rows.select(range(4))
    model, processor = load_base(own.preset, "fp32"), load_processor(own.preset)
    ours = answer_rows(own, model, processor, few, cache_features(own, model, processor, few), precision="fp32")
    theirs = endpoint_answers(study, Endpoint(transformers_server, "data/nano", concurrency=2), few)
    assert theirs.failure.isna().all() and (theirs.prompt_tokens > 20).all()
    differ = [pair for pair in zip(ours.prediction, theirs.prediction) if pair[0] != pair[1]]
    assert len(differ) <= 1, differ  # cached features are bf16: a close call may fall otherwise


def test_a_measured_system_is_filed_beside_the_study(monkeypatch, request):
    from docvlm.report import current_systems
    from docvlm.systems import measure_endpoint
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    opened = open_study("smoke")
    request.addfinalizer(lambda: (opened.results_dir/"systems.json").unlink(missing_ok=True))  # the name is real, the scores are not
    with serve(lambda question, number: (200, completion("Yes", prompt_tokens=100, completion_tokens=1))) as (url, log):
        found = measure_endpoint(opened, Endpoint(url, "gpt-4o-mini", concurrency=4), prompts="qwen2-vl-2b")
    assert all(question.endswith((" word or phrase.", " single word.")) for question in log.questions)
    filed = read_json(opened.results_dir/"systems.json")
    assert filed["systems"]["gpt-4o-mini"] == found and found["failures"] == {}
    assert KEY not in json.dumps(filed) and str(ROOT) not in json.dumps(filed)
    assert found["cost_per_1000_questions_usd"] == pytest.approx(1000*(100*0.15 + 1*0.6)/1e6) and found["price_source"]
    for cell in found["benchmarks"].values(): assert cell["ci95"][0] <= cell["value"] <= cell["ci95"][1] and cell["failed"] == 0
    data, evaluated = opened.result("data"), opened.step("evaluation").state() == "fresh"
    assert all((cell["delta"] is not None) == evaluated for cell in found["benchmarks"].values())
    results = {"data": data, "evaluation": opened.result("evaluation") if evaluated else {}}
    shown, outdated = current_systems(opened, results)
    assert ("gpt-4o-mini" in shown) == evaluated and ("gpt-4o-mini" in outdated) == (not evaluated)
    other = {"data": {"digest": {"test": "another"}}, "evaluation": results["evaluation"]}
    assert current_systems(opened, other) == ({}, list(filed["systems"]))


@pytest.mark.parametrize("arguments, message", [
    (["http://me:secret@localhost/v1", "--model", "m"], "not into the address"), (["ocr", "--preset", "2b"], "choose one of")])
def test_mistakes_get_one_clear_line(arguments, message):
    done = subprocess.run([BIN/"docvlm-measure", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "secret" not in done.stderr


@pytest.mark.skipif(not RECEIPTS.is_dir(), reason="shared/real/receipts is not beside this checkout")
def test_rules_read_a_real_training_receipt(tmp_path):
    from datasets import Dataset, Image
    from docvlm.lookup import lookup_answers
    asked = [json.loads(line) for line in (RECEIPTS/"train/metadata.jsonl").read_text().splitlines()][:4]
    rows = Dataset.from_dict({"doc_id": ["r"]*4, "question": [row["question"] for row in asked], "benchmark": ["docvqa"]*4,
                              "image": [str(RECEIPTS/"train"/asked[0]["file_name"])]*4}).cast_column("image", Image())
    found = dict(zip([row["field"] for row in asked], lookup_answers(SimpleNamespace(cache_dir=tmp_path), rows).prediction))
    assert found["date"] == "25/12/2018" and found["total"] == "9.00" and "TAMAN" in found["address"]
