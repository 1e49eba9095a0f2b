"Report and demo as a reader meets them: in a browser, with a keyboard, asking the network for nothing."
import asyncio
import re
import threading
import time

import pytest
from PIL import Image

import docvlm.core as core
from conftest import load_script
from test_report import HOSTILE, REPO, fill, html_of, no_figures, study  # noqa: F401 (fixtures)

recording = load_script("recording")
pytestmark = pytest.mark.skipif(not recording.CHROMIUM, reason="no chromium or google-chrome on PATH: the browser tests did not run")
SCREENS = [(390, "dark"), (1440, "light")]


@pytest.fixture(scope="module")
def browser():
    with recording.open_browser() as opened: yield opened


@pytest.fixture
def visit(browser):
    "Opens pages; when the test ends, nothing must have been logged, popped up or asked from elsewhere."
    heard, contexts = [], []

    def opener(url, width=1440, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: heard.append(f"request: {request.url[:100]}")
                if not request.url.startswith((url, "data:", f"blob:{url}")) else None)
        page.goto(url)
        return page

    yield opener
    for context in contexts: context.close()
    assert not heard, heard


def no_sideways_scrolling(page):
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def eventually(page, expression, limit_s=20):
    "Waits until JavaScript says true (playwright's own wait needs `eval`, which our pages forbid)."
    end = time.monotonic() + limit_s
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


@pytest.mark.parametrize("width, scheme", SCREENS)
def test_published_report(visit, width, scheme):
    page = visit((REPO / "paper/paper.html").as_uri(), width, scheme)
    assert page.locator("h1").count() == 1 and no_sideways_scrolling(page)
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth && image.alt)")
    assert page.evaluate("[...document.querySelectorAll('table')].every(table => table.caption && table.tHead)")
    assert page.locator("img").count() >= 10 and page.locator("html").get_attribute("lang") == "en"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 200) == (scheme == "dark")


@pytest.fixture
def report(study, no_figures, tmp_path):  # noqa: F811
    "A report whose models and documents say the worst."
    fill(study, texts=HOSTILE)
    path = tmp_path / "paper.html"
    path.write_text(html_of(study), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("width, scheme", SCREENS)
def test_hostile_report(visit, report, width, scheme):
    page = visit(report, width, scheme)
    assert no_sideways_scrolling(page) and page.locator("script").count() == 1
    assert page.locator("text=<script>alert('x')</script>").count() > 0, "shown as what it is"
    assert page.evaluate("document.querySelectorAll('[onerror], [onload], iframe, object').length") == 0


def test_gallery_filters(visit, report):
    page = visit(report)
    cards, shown, count = page.locator(".card"), page.locator(".card:visible"), page.locator(".filter output")
    total = cards.count()
    assert total == shown.count() == 12 and count.inner_text() == "12 of 12 answers"
    wanted = lambda key: page.get_by_label(key, exact=True)
    wanted("Fine-tuned").select_option("correct")
    right = shown.count()
    assert 0 < right < total and shown.evaluate_all("cards => cards.every(card => card.dataset.after === 'correct')")
    wanted("Fine-tuned").select_option("any error")
    assert shown.count() == total - right and count.inner_text() == f"{total - right} of {total} answers"
    wanted("Document type").select_option("bar")
    wanted("Answer on the page").select_option("outlined")
    found = shown.evaluate_all("cards => cards.map(card => [card.dataset.document, card.dataset.outline])")
    assert found and all(pair == ["bar", "outlined"] for pair in found)
    page.get_by_role("button", name="Show all").click()
    eventually(page, "document.querySelector('.filter output').innerText === '12 of 12 answers'")  # the reset comes after the click
    assert shown.count() == total and count.inner_text() == "12 of 12 answers"


def test_report_by_keyboard(visit, report):
    page = visit(report, 390)
    page.get_by_label("Base", exact=True).focus()
    page.keyboard.press("End")
    assert page.locator(".card:visible").count() < 12
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "after"
    box = page.locator("div.table[tabindex='0']").first
    box.focus()
    page.keyboard.press("ArrowRight")
    eventually(page, "document.activeElement.scrollLeft > 0")
    assert box.get_attribute("role") == "region" and box.get_attribute("aria-label")


class Parrot:
    "Stands in for a model: answers with what would do harm if it were taken for markup."
    systems = ["base", "LoRA"]

    def ask(self, pages, questions):
        return [{"question": questions[0], "system": s, "answer": HOSTILE[n] + f" {pages[0].size}", "confidence": .5, "seconds": .01, "pages": [1, 2][:len(pages)]}
                for n, s in enumerate(self.systems)]


@pytest.fixture
def demo():
    "The demo, served from a thread of its own."
    from docvlm.apps import ask as module
    core.root.cache_clear()
    examples = [{"name": name, "images": [Image.new("RGB", (60, 40), "white")]*len(pages), "pages": pages, "page_count": count,
                 "answers": {"Who?": target}} for name, target, pages, count in (
                     ("<b>forms</b>", "ACME & <i>Sons</i>", [1], 1), ("letters", "Foster", [1], 1), ("reports", "Kent", [2, 5, 9], 17))]
    loop = asyncio.new_event_loop()

    async def start(): return module.listen(module.make_app(Parrot(), examples), "127.0.0.1", 0)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield asyncio.run_coroutine_threadsafe(start(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


@pytest.mark.parametrize("width, scheme", SCREENS)
def test_demo(visit, demo, tmp_path, width, scheme):
    page = visit(demo, width, scheme)
    eventually(page, "document.querySelector('#page').naturalWidth === 60")
    assert no_sideways_scrolling(page) and page.get_by_label("Question").input_value() == "Who?"
    page.get_by_label("Question").press("Enter")
    cells = page.locator("#answers td:nth-child(2)")
    cells.first.wait_for()
    assert cells.all_inner_texts() == [f"{text} (60, 40)" for text in HOSTILE[:2]]
    assert page.locator("#answers caption").inner_text() == "Accepted answer: ACME & <i>Sons</i>"
    assert page.locator("#answers td").all_inner_texts()[0::4] == ["base", "LoRA"] and "50 %" in page.locator("#answers").inner_text()

    Image.effect_noise((80, 30), 50).save(tmp_path / "mine.png")
    page.get_by_label("or a file").set_input_files(tmp_path / "mine.png")
    eventually(page, "document.querySelector('#page').naturalWidth === 80")
    page.get_by_label("Question").fill("What is it?")
    page.get_by_role("button", name="Ask").click()
    eventually(page, "document.querySelector('#answers').innerText.includes('(80, 30)')")
    assert page.locator("#answers caption").inner_text() == "" and no_sideways_scrolling(page)


def test_demo_says_which_pages_were_read(visit, demo, tmp_path):
    page = visit(demo, 900)
    page.get_by_label("Page").select_option("reports")
    page.get_by_role("button", name="Ask").click()
    eventually(page, "document.querySelector('#state').innerText === 'Read pages 2 and 5 of 17. Page 2 is shown.'")
    Image.effect_noise((80, 30), 50).save(tmp_path / "two.pdf", save_all=True, append_images=[Image.effect_noise((80, 30), 60)])
    page.get_by_label("or a file").set_input_files(tmp_path / "two.pdf")
    page.get_by_label("Question").fill("Who?")
    page.get_by_role("button", name="Ask").click()
    eventually(page, "document.querySelector('#state').innerText === 'Read all 2 pages.'")


def test_demo_refuses_what_is_no_page(browser, demo, tmp_path):
    page = browser.new_page()
    page.goto(demo)
    for name, content, said in (("a.png", b"<svg onload=alert(1)>", "not an image"), ("b.png", b"x" * (20 * 2**20 + 1), "Over 20 MiB")):
        (tmp_path / name).write_bytes(content)
        page.get_by_label("or a file").set_input_files(tmp_path / name)
        page.get_by_label("Question").fill("Who?")
        if "Over" not in said: page.get_by_role("button", name="Ask").click()
        eventually(page, f"document.querySelector('#state').innerText.includes('{said}')")
        assert page.locator("#answers").is_hidden()
    page.close()


def test_the_recording_shows_each_page_without_and_with_answers(visit, demo, monkeypatch):
    monkeypatch.setattr(recording, "PAGES", ("letters", "<b>forms</b>"))
    shown = list(recording.frames(visit(demo, 900)))
    assert [pause for _, pause in shown] == [recording.PAUSE_MS, recording.READ_MS]*2
    assert len({picture.tobytes() for picture, _ in shown}) == 4 and shown[0][0].width == 900


def test_the_published_recording_shows_every_page_and_is_small():
    with Image.open(recording.TARGET) as shown: assert shown.n_frames == 2*len(recording.PAGES)
    assert recording.TARGET.stat().st_size < recording.MOST_BYTES


def test_demo_takes_no_endless_upload(demo):
    import http.client
    from urllib.parse import urlsplit
    connection = http.client.HTTPConnection(urlsplit(demo).netloc, timeout=20)
    connection.putrequest("POST", "/ask")
    connection.putheader("Content-Length", str(2**31))
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()
