"""Record the demo page answering questions about three test pages of the nano study: figures/nano/demo.webp.

    python paper/recording.py    # needs Chromium, and the adapter of a study that ran here"""
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT/"figures"/"nano"/"demo.webp"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAGES = ("invoices", "bar charts", "reports")  # document types, one example page of each
PAUSE_MS, READ_MS = 900, 2600  # for which a frame without and with answers is shown
MOST_BYTES = 1_000_000


def frames(page):
    "Choose each page and ask its first question; yields a picture and for how many milliseconds it is shown."
    shot = lambda: Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for name in PAGES:
        page.get_by_label("Page").select_option(label=name)
        page.wait_for_load_state("networkidle")
        yield shot(), PAUSE_MS
        page.get_by_role("button", name="Ask").click()
        page.locator("#answers td").first.wait_for()
        yield shot(), READ_MS


def record(url):
    "Write the recording of the demo at an address; returns its size in bytes."
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not executable: sys.exit("No Chromium on PATH; install it (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, chromium_sandbox=os.geteuid() != 0)
        page = browser.new_page(viewport={"width": 900, "height": 620})
        page.goto(url)
        shown, durations = zip(*frames(page))
        browser.close()
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    shown[0].save(TARGET, save_all=True, append_images=shown[1:], duration=durations, loop=0, quality=60, method=6)
    return TARGET.stat().st_size


if __name__ == "__main__":
    command = [Path(sys.executable).parent/"docvlm-demo", "--preset", "nano", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as demo:
        try:
            told = demo.stdout.readline()
            if not (url := re.search(r"http://\S+", told)): sys.exit(f"docvlm-demo did not start: {told}")
            if "LoRA" not in told: sys.exit("No adapter here; run `make study` first")
            size = record(url[0])
        finally: demo.terminate()
    print(f"{TARGET.relative_to(ROOT)}: {size:,} bytes")
    if size > MOST_BYTES: sys.exit(f"The recording has over {MOST_BYTES:,} bytes; lower its quality or drop a page")
