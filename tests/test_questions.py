"One rule for a question at every door, nothing cut off in silence, and no number of questions that takes all memory."
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest
from conftest import refusal
from PIL import Image
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from docvlm import cli
from docvlm.apps import ask as asking
from docvlm.engine import answering
from docvlm.engine.answering import questions_at_a_time
from docvlm.engine.packing import encode_text
from docvlm.apps.ask import Asker, AskWidget, ask_page
from docvlm.core import open_study
from docvlm.apps.ask import listen, make_app
from docvlm.execution import MAX_CHARACTERS, check_question
from docvlm.inputs.folder import clean_record

ROOT = Path(__file__).resolve().parent.parent
RULE = "; ask in 1 to 4,000 readable characters (UTF-8)"
REFUSED = {"": "no question", " \t\n\u00a0": "no question", "\0\x07\u202e": "no question", "\u200b\u2060": "no question", "\udcff\udcfe": "not valid Unicode",
           "Who\ud83d?": "not valid Unicode", "w"*(MAX_CHARACTERS + 1): "4,001 characters: over 4,000", "long "*11_400: "57,000 characters: over 4,000"}
PAGE = Image.new("RGB", (200, 120), "white")
FORM = {"name": "forms", "images": [PAGE], "pages": [1], "page_count": 1, "answers": {}}


@pytest.fixture(scope="module")
def asker(): return Asker(open_study("smoke"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    PAGE.save(file := tmp_path_factory.mktemp("page")/"page.png")
    return file


@pytest.fixture
def widget(asker, monkeypatch):
    monkeypatch.setattr(asking, "example_pages", lambda study: [FORM | {"answers": {"Who?": "ACME"}}])
    widget = AskWidget(asker.study)
    widget.asker = asker
    return widget


@pytest.fixture
def post():
    "Posts questions to the demo, where a parrot answers; codes and texts."
    import asyncio
    parrot = SimpleNamespace(systems=["base"], ask=lambda page, questions: [{"question": q, "answer": q} for q in questions])
    async def sent(bodies):
        url, found = listen(make_app(parrot, [FORM]), "127.0.0.1", 0), []
        for body in bodies:
            try: answer = await AsyncHTTPClient().fetch(url + "ask", method="POST", body=body)
            except HTTPClientError as error: answer = error.response
            found.append((answer.code, answer.body.decode()))
        return found
    return lambda *bodies: asyncio.run(sent(bodies))


@pytest.mark.parametrize("question, reason", REFUSED.items(), ids=range(len(REFUSED)))
def test_every_door_refuses_alike(asker, page, widget, monkeypatch, question, reason):
    monkeypatch.setattr(asking, "Asker", lambda study: pytest.fail("a model was loaded for nothing"))
    said = []
    for door in (lambda: check_question(question), lambda: asker.ask([PAGE], ["Who?", question]), lambda: ask_page(asker.study, page, [question]),
                 lambda: clean_record({"file_name": "a.png", "question": question, "answers": ["x"]})):
        with pytest.raises(ValueError, match=reason) as refused: door()
        said.append(str(refused.value))
    widget.question.value = question
    widget._ask()
    assert len(set(said)) == 1 and said[0].endswith(RULE) and widget.reply.value == f"No answer: {said[0]}" and not widget.button.disabled


def test_the_demo_refuses_alike(post):
    asked = [q for q in REFUSED if not any("\ud800" <= c <= "\udfff" for c in q)]
    for (code, text), question in zip(post(*(urlencode({"question": q, "example": 0}) for q in asked)), asked):
        assert code == 400 and REFUSED[question] in text and RULE in text
    assert post(b"question=%FF%FE&example=0")[0][0] == 400, "bytes that are no UTF-8"
    assert 'maxlength' not in (ROOT/"paper"/"demo.html").read_text(), "a browser would cut a question off in silence"


def test_a_long_question_is_asked_whole(asker, page, widget, post, monkeypatch):
    question, seen = "Which of these? " + "word "*120 + "end", []
    monkeypatch.setattr(asking, "encode_text", lambda tokenizer, text: seen.append(text) or tokenizer(text)["input_ids"])
    widget.question.value = question
    widget._ask()
    assert seen == [question] and "<table>" in widget.reply.value
    assert asker.ask([PAGE], [question])[0]["question"] == question and check_question(question) == question
    assert post(urlencode({"question": question, "example": 0}))[0] == (200, f'{{"answers": [{{"question": "{question}", "answer": "{question}"}}], "target": null, "read": ""}}')


def test_the_command_says_it_in_one_line(page, monkeypatch, capsys):
    question = os.fsdecode(b"\xff\xfe")  # bytes of the command line that are no text, which no signature can refuse
    monkeypatch.setattr(sys, "argv", ["docvlm-ask", str(page), question, "--preset", "smoke"])
    assert refusal(capsys, cli.ask).endswith(RULE + "\n")


def test_many_questions_are_answered_in_shares_and_alike(asker, monkeypatch):
    questions, sizes, answer = [f"What is number {n}?" for n in range(9)], [], answering.answer
    def counted(model, template, vision, grids, asked, page_of, *more):
        sizes.extend(Counter(page_of).values())
        return answer(model, template, vision, grids, asked, page_of, *more)
    monkeypatch.setattr(answering, "answer", counted)
    told = lambda found: [(row["question"], row["system"], row["answer"]) for row in found]
    whole = told(asker.ask([PAGE], questions))
    assert [question for question, system, _ in whole if system == "base"] == questions
    length = max(len(encode_text(asker.processor.tokenizer, question)) for question in questions)
    monkeypatch.setattr(asker, "study", replace(asker.study, preset=replace(asker.study.preset, tokens_per_batch=4*length)))
    sizes.clear()
    assert [row[:2] for row in told(asker.ask([PAGE], questions))] == [row[:2] for row in whole] and max(sizes) <= 4
    assert asker.ask([PAGE], []) == []


def test_no_number_of_questions_takes_all_memory():
    preset = open_study("smoke").preset
    for length in (1, 10, 500, 4000):
        most, tokens = questions_at_a_time([[0]*length]*100_000, 200, preset.tokens_in_flight, preset.tokens_per_batch)
        assert most == 1 or most*length <= preset.tokens_per_batch and most*tokens <= preset.tokens_in_flight
