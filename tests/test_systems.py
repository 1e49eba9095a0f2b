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
from conftest import refusal

from docvlm import cli
from docvlm.files import StudyError, read_json
from docvlm.presets import get_preset
from docvlm.core import open_study
from docvlm.data import load_splits
from docvlm.baselines.endpoint import Endpoint, endpoint_answers

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
RECEIPTS = ROOT.parent/"shared/real/receipts"
KEY = "sk-test-6f1d-never-stored"


def completion(text, **usage):
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": usage or None,
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]}


@contextmanager
def serve(reply, models=()):
    "A local server; `reply(question, number)` gives (status, body, headers); what it was asked is kept."
    log = SimpleNamespace(questions=[], keys=set(), times=[], now=0, most=0, lock=threading.Lock())

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_): pass

        def do_GET(self):
            content = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in models]}).encode()
            self.send_response(200 if models else 404)
            for header in (("Content-Type", "application/json"), ("Content-Length", str(len(content)))): self.send_header(*header)
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            *pages, text = request["messages"][0]["content"]
            assert request["temperature"] == 0 and pages
            assert all(page["image_url"]["url"].startswith("data:image/png;base64,") for page in pages)
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


@pytest.mark.parametrize("count", [10**22, -1, True, "9", 1.5])
def test_counts_that_are_none_are_left_out(study, rows, count):
    with serve(lambda question, number: (200, completion("yes", prompt_tokens=count, completion_tokens=2))) as (url, _):
        first = endpoint_answers(study, endpoint(url), rows.select(range(2)))
        again = endpoint_answers(study, endpoint(url), rows.select(range(2)))
    for found in (first, again):
        assert found.prompt_tokens.isna().all() and (found.answer_tokens == 2).all()
        found.to_parquet(study.run_dir/"answers.parquet")


@pytest.mark.parametrize("model", ["", "  ", "m\x1b[31m", "m\n", "m\udcff"])
def test_a_model_has_a_printable_name(model):
    with pytest.raises(ValueError, match="Name the model .* in printable characters"): Endpoint("http://localhost:1/v1", model)


def test_no_text_points_to_the_model_and_colours_are_taken_off(study, rows):
    with serve(lambda question, number: (200, completion(None))) as (url, _):
        with pytest.raises(StudyError, match="no text .*chat template, and whether it needs longer answers"):
            endpoint_answers(study, endpoint(url), rows.select(range(2)))
    with serve(lambda question, number: (400, {"error": {"message": "\x1b[31mtoo big\x1b[0m"}})) as (url, _):
        with pytest.raises(StudyError, match='the server says "too big"'): endpoint_answers(study, endpoint(url), rows.select(range(2)))


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
    monkeypatch.setattr("docvlm.baselines.endpoint.MOST_FAILURES", 4)
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
    from docvlm.engine.answering import answer_rows
    from docvlm.model import load_base, load_processor
    from docvlm.engine.features import cache_features
    own, few = open_study("smoke"), rows.select(range(4))
    model, processor = load_base(own.preset, "fp32"), load_processor(own.preset)
    ours = answer_rows(own, model, processor, few, cache_features(own, model, processor, few), precision="fp32")
    theirs = endpoint_answers(study, Endpoint(transformers_server, "data/nano", concurrency=2), few)
    assert theirs.failure.isna().all() and (theirs.prompt_tokens > 20).all()
    differ = [pair for pair in zip(ours.prediction, theirs.prediction) if pair[0] != pair[1]]
    assert len(differ) <= 1, differ  # cached features are bf16: a close call may fall otherwise


def test_a_measured_system_is_filed_beside_the_study(monkeypatch, request):
    from docvlm.report import current_systems
    from docvlm.baselines.compare import measure_endpoint
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
def test_mistakes_get_one_clear_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["docvlm-measure", *arguments])
    said = refusal(capsys, cli.measure)
    assert message in said and "secret" not in said


@pytest.mark.skipif(not RECEIPTS.is_dir(), reason="shared/real/receipts is not beside this checkout")
def test_rules_read_a_real_training_receipt(tmp_path):
    from datasets import Dataset, Image, List
    from docvlm.baselines.ocr import lookup_answers
    asked = [json.loads(line) for line in (RECEIPTS/"train/metadata.jsonl").read_text().splitlines()][:4]
    rows = Dataset.from_dict({"doc_id": ["r"]*4, "pages": [[1]]*4, "question": [row["question"] for row in asked], "benchmark": ["docvqa"]*4,
                              "images": [[str(RECEIPTS/"train"/asked[0]["file_name"])]]*4}).cast_column("images", List(Image()))
    found = dict(zip([row["field"] for row in asked], lookup_answers(SimpleNamespace(cache_dir=tmp_path), rows).prediction))
    assert found["date"] == "25/12/2018" and found["total"] == "9.00" and "TAMAN" in found["address"]


# What a system cannot answer is no score, and says why


def small(tmp_path, rows):
    "A study of these test questions alone, with two adapters that answer all of them rightly."
    made = SimpleNamespace(preset=get_preset("smoke"), name="small", run_dir=tmp_path/"run", results_dir=tmp_path/"results",
                           cache_dir=tmp_path/"cache", result=lambda step: {"digest": {"test": "d"}},
                           step=lambda name: SimpleNamespace(state=lambda: "fresh" if name == "data" else "missing"))
    own = rows.remove_columns("images").to_pandas().assign(score=1.0)
    return made, ("evaluation-digest", [own]*len(made.preset.seeds))


@pytest.fixture
def measured(tmp_path, monkeypatch, rows, capsys):
    "Runs docvlm-measure on few questions: exit code, stderr, what is filed."
    from docvlm.baselines import compare as systems
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        for variable in (name, name.lower()): monkeypatch.delenv(variable, raising=False)
    real = systems.Endpoint
    monkeypatch.setattr("docvlm.baselines.endpoint.Endpoint", lambda *settings: real(*settings, retries=0))

    def run(system, of=rows.select(range(3)), **options):
        made, own = small(tmp_path, of)
        monkeypatch.setattr(systems, "load_splits", lambda study: {"test": of})
        monkeypatch.setattr(systems, "_own_predictions", lambda study: own)
        monkeypatch.setattr(cli, "_opened", lambda preset, documents, *settings: made)
        capsys.readouterr()
        try: code = cli.measure(system, **{"model": "m", "preset": "smoke"} | options) or 0
        except SystemExit as stopped: code = stopped.code
        filed = made.results_dir/"systems.json"
        found = read_json(filed)["systems"] if filed.exists() else {}
        told = next((line for line in capsys.readouterr().err.splitlines() if line.startswith("docvlm: ")), "")
        kept = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
        assert KEY not in told + kept
        return SimpleNamespace(code=code, told=told, filed=found, files=[p.name for p in tmp_path.rglob("*.parquet")])
    return run


def unused_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def no_measurement(found):
    assert found.code == 1 and found.filed == {} and not found.files, found
    assert "no result is written" in found.told.lower() and len(found.told) < 1200 and found.told.isprintable(), found.told


@pytest.mark.parametrize("status, body, words, remedy", [
    (400, {"error": {"message": "m is not a multimodal model"}}, 'the server says "m is not a multimodal model"', "reads images"),
    (400, {"object": "error", "message": "maximum context length is 2048 tokens"}, "2048 tokens", "--max-model-len"),
    (400, {"detail": "no"}, 'says "no"', "accepts such a request"), (400, "", "(HTTP 400: 3)", "accepts such a request"),
    (401, {"error": {"message": f"Incorrect API key: {KEY}"}}, 'says "Incorrect API key: (key)"', "OPENAI_API_KEY"),
    (403, {"error": "no"}, "refuses model 'm'", "check the key"), (404, {"detail": "Not Found"}, "Not Found", "the server offers one, two"),
    (413, "<html><head><title>413 Too Large</title></head></html>", 'says "413 Too Large"', "client_max_body_size"),
    (422, {"detail": [{"loc": ["model"], "msg": "The model `m` does not exist"}]}, "does not exist", "offers one, two"),
    (429, {"error": {"message": "You exceeded your current quota"}}, "current quota", "billing"),
    (429, {"error": {"message": "slow down"}}, "slow down", "--requests_per_minute"),
    (500, "<!doctype html><p>Boom &amp; bust</p>", 'says "Boom & bust"', "server's log"), (503, {"message": "loading"}, "loading", "log"),
    (200, "<html>Welcome</html>", "Welcome", "ends in /v1"), (200, {"error": {"message": "no GPU"}}, "no GPU", "ends in /v1"),
    (200, completion(None), "finish_reason: stop", "chat template"), (200, completion(" \n"), "empty text", "chat template")])
def test_a_server_that_answers_nothing_is_no_measurement(measured, status, body, words, remedy):
    with serve(lambda question, number: (status, body), models=("one", "two")) as (url, log): found = measured(url)
    no_measurement(found)
    assert words in found.told and remedy in found.told, found.told


def test_a_message_is_one_bounded_line_without_the_key(measured):
    hostile = f"\x1b[31m<b>bad\n\u202e{KEY}\x00 {KEY[:8]}\x00{KEY[8:]} " + "word "*500
    with serve(lambda question, number: (400, {"error": {"message": hostile}})) as (url, log): found = measured(url)
    no_measurement(found)
    assert '"<b>bad (key) (key) word' in found.told and found.told.count("word") < 70


@pytest.mark.parametrize("shown", [f"{KEY[:7]}************{KEY[-4:]}", f"{KEY[:11]}...", f"…{KEY[-6:]}", f"{KEY[:4]}****", KEY[3:16]])
def test_a_key_that_a_server_shows_in_part_is_masked(measured, shown):
    said = f"Incorrect API key provided: {shown}. Ask the administrator"
    with serve(lambda question, number: (401, {"error": {"message": said}})) as (url, log): found = measured(url)
    no_measurement(found)
    assert 'says "Incorrect API key provided: (key)' in found.told and ' Ask the administrator"' in found.told, found.told


def test_many_questions_end_early_with_the_same_message(measured, rows, monkeypatch):
    monkeypatch.setattr("docvlm.baselines.endpoint.MOST_FAILURES", 5)
    with serve(lambda question, number: (400, {"error": {"message": "no images here"}})) as (url, log):
        found = measured(url, rows, concurrency=1)
    no_measurement(found)
    assert "5 requests in a row failed" in found.told and "no images here" in found.told and "reads images" in found.told
    assert "start the server" not in found.told and len(log.questions) < len(rows)


def test_where_no_server_is_the_remedy_fits(measured, monkeypatch):
    port = unused_port()
    found = measured(f"http://127.0.0.1:{port}/v1")
    no_measurement(found)
    assert f"127.0.0.1:{port}" in found.told and "connection refused; start the server, or check host and port" in found.told
    found = measured("http://no.such.host.invalid/v1")
    no_measurement(found)
    assert "host name not found" in found.told and "check the host name no.such.host.invalid" in found.told
    with serve(lambda question, number: (200, completion("x"))) as (url, log): found = measured(url.replace("http:", "https:"))
    no_measurement(found)
    assert "TLS error" in found.told and "http or https" in found.told
    monkeypatch.setenv("HTTP_PROXY", f"http://me:hidden@127.0.0.1:{port}")
    with serve(lambda question, number: (200, completion("x"))) as (url, log):
        found = measured(url)
        no_measurement(found)
        assert f"proxy in HTTP_PROXY (127.0.0.1:{port}); set NO_PROXY=127.0.0.1" in found.told and "hidden" not in found.told
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert measured(url).code == 0


def test_a_proxy_that_cannot_be_used_is_named(measured, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://me:hidden@127.0.0.1:9")
    found = measured("http://127.0.0.1:9/v1")
    assert found.code == 1 and "ALL_PROXY (127.0.0.1:9)" in found.told and "hidden" not in found.told


def test_time_outs_only_say_how_long_was_waited(measured):
    def reply(question, number):
        time.sleep(1)
        return 200, completion("late")
    with serve(reply) as (url, log): found = measured(url, timeout_s=0.2)
    no_measurement(found)
    assert "(time-out: 3)" in found.told and "raise --timeout_s (now 0.2)" in found.told


def test_a_good_record_stays_when_its_server_is_gone(measured):
    with serve(lambda question, number: (200, completion("yes"))) as (url, log): good = measured(url).filed
    found = measured(f"http://127.0.0.1:{unused_port()}/v1")
    assert found.code == 1 and found.filed == good and good["m"]["failures"] == {}


def test_empty_texts_alone_are_asked_again(measured):
    said = [""]
    with serve(lambda question, number: (200, completion(said[0]))) as (url, log):
        assert measured(url).code == 1
        said[0] = "yes"
        found = measured(url)
    assert found.code == 0 and found.filed["m"]["benchmarks"] and len(log.questions) == 6


def test_a_part_of_the_answers_is_scored_alone(measured, rows, tmp_path):
    from docvlm.paper.tables import other_systems, without_answer
    answers = dict(zip(rows["question"], rows["answers"]))
    bad = set(rows["question"][::3])
    def reply(question, number): return (500, "<b>Boom</b> | bang") if question in bad else (200, completion(answers[question][0]))
    with serve(reply) as (url, log): found = measured(url, rows)
    filed = found.filed["m"]
    failed = sum(question in bad for question in rows["question"])
    assert found.code == 0 and f"{failed} of {len(rows)} questions have no answer (HTTP 500: {failed})" in found.told
    assert filed["failures"] == {"HTTP 500": failed} and len(filed["unanswered"]) == failed
    assert filed["unanswered"][0] == {"question_id": rows["question_id"][0], "page": rows["doc_id"][0], "failure": "HTTP 500",
                                      "reason": "<b>Boom</b> | bang"}
    for cell in filed["benchmarks"].values():
        assert cell["answered"] + cell["failed"] == cell["questions"] and cell["failed"] and cell["value"] == 1, "no failure is a zero"
        assert cell["delta"] is None or cell["delta"]["value"] == 0, "our lead is over the questions that were answered"
    cell = filed["benchmarks"][rows["benchmark"][0]]
    share = f"{cell['answered']} of {cell['questions']}"
    assert share in other_systems(found.filed) and "100\\.0" in other_systems(found.filed)
    assert "HTTP 500" in without_answer(found.filed) and "<b>" not in without_answer(found.filed)
    with serve(lambda question, number: (200, completion("x"))) as (url, log): assert measured(url, rows).filed["m"]["failures"] == {}


def test_a_benchmark_without_any_answer_is_not_measured(measured):
    from docvlm.paper.tables import other_systems
    rows = load_splits(open_study("smoke"))["test"]
    lost = rows["benchmark"][len(rows) - 1]
    some = rows.select([i for i, name in enumerate(rows["benchmark"]) if name == lost][:3] + list(range(6)))
    bad = {question for question, name in zip(some["question"], some["benchmark"]) if name == lost}
    with serve(lambda question, number: (400, {"error": "too large"}) if question in bad else (200, completion("7"))) as (url, log):
        found = measured(url, some)
    cell = found.filed["m"]["benchmarks"][lost]
    assert found.code == 0 and cell["value"] is None and cell["ci95"] is None and cell["delta"] is None and cell["answered"] == 0
    assert "not measured" in other_systems(found.filed)


def test_pages_that_a_server_rejects_do_not_end_the_others(measured, rows, monkeypatch):
    monkeypatch.setattr("docvlm.baselines.endpoint.MOST_FAILURES", 2)
    good = rows["question"][0]
    with serve(lambda question, number: (200, completion("7")) if question == good else (413, "")) as (url, log):
        found = measured(url, rows, concurrency=1)
    assert found.code == 0 and found.filed["m"]["failures"] == {"HTTP 413": sum(q != good for q in rows["question"])}


def with_bad_pages(rows):
    "Five questions: two on good pages, one on a page of 28×5600 pixels, one on a broken file, one that is no text."
    import io
    from datasets import Dataset, Image, List
    from PIL import Image as PILImage
    def png(page):
        page.save(buffer := io.BytesIO(), "PNG")
        return buffer.getvalue()
    narrow, good = png(PILImage.new("RGB", (28, 5600), "white")), [png(rows[i]["images"][0]) for i in (0, len(rows) - 1)]
    table = rows.select(range(5)).remove_columns("images").to_pandas()
    table["doc_id"], table["question_id"] = ["good", "also good", "narrow", "broken", "good"], list("abcde")
    table["benchmark"] = "docvqa"
    table.loc[4, "question"] = "What raises?"
    pages = [good[0], good[1], narrow, good[0][:200], good[0]]
    found = Dataset.from_pandas(table, preserve_index=False).add_column("images", [[{"bytes": page, "path": None}] for page in pages])
    return found.cast_column("images", List(Image()))


def test_a_page_that_ocr_cannot_read_and_a_rule_that_raises_fail_alone(measured, rows, monkeypatch, tmp_path):
    from docvlm.baselines import ocr as lookup
    def raising(question, named, lines, benchmark):
        if question == "What raises?": raise ZeroDivisionError("a rule")
        return "7"
    monkeypatch.setattr(lookup, "LOOKUP_RULES", (raising,))
    found = measured("ocr", with_bad_pages(rows), model="")
    filed = found.filed["RapidOCR and look-up rules"]
    assert found.code == 0 and filed["failures"] == {"OCR error": 1, "unreadable page": 1, "rule error": 1}
    assert [(row["page"], row["failure"]) for row in filed["unanswered"]] == [
        ("narrow", "OCR error"), ("broken", "unreadable page"), ("good", "rule error")]
    assert "28×5600" in filed["unanswered"][0]["reason"] and "ZeroDivisionError: a rule" == filed["unanswered"][2]["reason"]
    assert filed["benchmarks"]["docvqa"]["answered"] == 2 and filed["seconds_per_question"] > 0
    assert len(list((tmp_path/"cache").rglob("*.json"))) == 2, "a failure is not cached as an answer"


def test_what_would_fail_on_every_page_stops(measured, rows, monkeypatch):
    from docvlm.inputs import retrieval as ocr
    ocr._engine.cache_clear()
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    found = measured("ocr", with_bad_pages(rows), model="")
    assert found.code == 1 and "The OCR engine cannot start" in found.told and found.filed == {}
    ocr._engine.cache_clear()
    monkeypatch.undo()


def test_ocr_that_reads_no_page_is_no_measurement(measured, rows):
    found = measured("ocr", with_bad_pages(rows).select([2, 3]), model="")
    no_measurement(found)
    assert "answered none of 2 questions (OCR error: 1, unreadable page: 1)" in found.told and "28×5600" in found.told


def test_a_broken_file_of_cached_lines_is_made_anew(tmp_path, monkeypatch):
    from docvlm.inputs.retrieval import Line, page_lines
    study, image = SimpleNamespace(cache_dir=tmp_path), lambda: None
    monkeypatch.setattr("docvlm.inputs.retrieval.read_lines", lambda page: [Line("a", 0, 0, 1, 1, 1.)])
    lines, _ = page_lines(study, image, "k")
    for broken in ("", "[]", '{"lines": [[1]], "seconds": 1}', '{"lines": []}'):
        next(tmp_path.rglob("k.json")).write_text(broken)
        assert page_lines(study, image, "k")[0] == lines


@pytest.mark.parametrize("error", [UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), MemoryError(), RuntimeError("odd")])
def test_a_request_of_ours_that_raises_fails_alone(measured, rows, monkeypatch, error):
    from docvlm.baselines import endpoint as module
    real, bad = module.ask_server, rows["question"][0]
    class Raising:
        def __init__(self, client): self.__dict__ |= {"api_key": client.api_key, "chat": self, "completions": self}
        def create(self, **request): raise error
    monkeypatch.setattr(module, "ask_server", lambda client, model, page, prompt, limit: real(
        Raising(client) if prompt == bad else client, model, page, prompt, limit))
    with serve(lambda question, number: (200, completion("7"))) as (url, log): found = measured(url, rows)
    assert found.code == 0 and set(found.filed["m"]["failures"]) == {"failed request"}
    assert found.filed["m"]["unanswered"][0]["reason"].startswith(type(error).__name__)


def test_a_page_that_cannot_be_sent_fails_alone_and_a_full_disk_stops(measured, rows, monkeypatch):
    with serve(lambda question, number: (200, completion("7"))) as (url, log):
        found = measured(url, with_bad_pages(rows))
        assert found.code == 0 and found.filed["m"]["failures"].keys() <= {"unreadable page"}
        monkeypatch.setattr("docvlm.baselines.endpoint.page_url", lambda image: (_ for _ in ()).throw(OSError("truncated")))
        found = measured(url, rows)
        assert found.code == 1 and f"(unreadable page: {len(rows)}); OSError: truncated; check the files of the pages" in found.told
        monkeypatch.setattr("docvlm.baselines.endpoint.page_url", lambda image: (_ for _ in ()).throw(StudyError("Cannot write x: disk full")))
        found = measured(url, rows)
        assert found.code == 1 and found.told == "docvlm: Cannot write x: disk full"


def test_published_systems_are_shown_and_those_of_other_questions_left_out(tmp_path):
    from docvlm.report import current_systems
    from docvlm.steps import content_digest
    from docvlm.paper.tables import empty_answers, other_systems, without_answer
    systems = read_json(ROOT/"data/results/nano/systems.json")["systems"]
    shown = other_systems(systems)
    cell = systems["RapidOCR and look-up rules"]["benchmarks"]["docvqa"]
    score, low, high, lead = (f"{100*value:.1f}".replace(".", "\\.").replace("-", "−")
                              for value in (cell["value"], *cell["ci95"], cell["delta"]["value"]))
    answered = f"{cell['answered']} of {cell['questions']} \\(100 \\%\\)"
    assert f"| {answered} | {score} | {low} to {high} | {lead} |" in shown
    assert without_answer(systems) == "" and empty_answers(systems) == []
    results = {"data": {"digest": {"test": "d"}}, "evaluation": {"content": "e"}}
    inputs = {"questions": "d", "evaluation": content_digest(results["evaluation"])}
    def record(**changed):
        found = {"benchmarks": {"docvqa": {"failed": 3, "answered": 2}}, "inputs": inputs | changed}
        return found | {"content": content_digest(found)}
    (tmp_path/"systems.json").write_text(json.dumps({"systems": {"old": record(questions="c"), "new": record()}}))
    shown, outdated = current_systems(SimpleNamespace(results_dir=tmp_path, name="nano"), results)
    assert list(shown) == ["new"] and outdated == ["old"]


def test_the_report_shows_failures_as_failures_and_escapes_what_servers_say():
    from docvlm import report
    from docvlm.paper import tables
    hostile = "<script>alert(1)</script> {{ 7*7 }} | **bold** [x](javascript:alert(1)) \u202e"
    cell = {"metric": "anls", "questions": 12, "images": 4, "answered": 10, "failed": 2, "empty": 0, "value": 0.5, "ci95": [0.4, 0.6],
            "delta": {"value": -0.1, "ci95": [-0.2, 0.1], "p_value": 0.2}}
    nothing = cell | {"answered": 0, "failed": 12, "value": None, "ci95": None, "delta": None}
    others = {hostile: {"benchmarks": {"docvqa": cell, "chartqa": nothing, "infovqa": cell | {"answered": 12, "failed": 0, "empty": 12}},
                        "failures": {"HTTP 400": 13, "time-out": 1}, "seconds_per_question": 0.2, "cost_per_1000_questions_usd": None,
                        "unanswered": [{"question_id": "q", "page": hostile, "failure": "HTTP 400", "reason": hostile}]}}
    section = (ROOT/"paper/template.md.j2").read_text().partition("## Other systems")[2].partition("{% if real %}")[0]
    shown = report.to_html(report.render(section, e={"against_published": []}, others=others, outdated=["o" + hostile],
                                         tables=tables), "Test")
    body = shown.partition("<body")[2].partition("<script>\n")[0]
    assert "<script>alert" not in body and "javascript:" not in body.replace("(javascript:alert(1))", "") and "49" not in body
    for text in ("10 of 12 (83.33 %)", "0 of 12 (0 %)", "HTTP 400", "time-out",
                 "does not count as zero", "questions are empty", "failures counted as zeros"): assert text in " ".join(body.split()), text


def test_the_command_ends_with_one_line_where_nothing_answers():
    with serve(lambda question, number: (400, {"error": {"message": "<i>no images</i>"}})) as (url, log):
        done = subprocess.run([BIN/"docvlm-measure", url, "--model", "m", "--preset", "smoke"], cwd=ROOT, capture_output=True,
                              text=True, env=os.environ | {"OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"})
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("docvlm: 20 requests in a row failed") and "<i>no images</i>" in last
    assert "Traceback" not in done.stderr and KEY not in done.stderr
