"The docs site: its pages, its links, and nothing loaded from the network. Links of the sources are checked without building it."
import json
import re
from pathlib import Path

import pytest
from conftest import load_script

ROOT = Path(__file__).resolve().parent.parent
site = load_script("site")


def headings(text):
    "The anchors that GitHub gives to the headings of a page."
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.+)$", text, re.M)}


def text_links(path):
    "The links in the Markdown of a file or notebook, and its whole Markdown."
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    else: text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    return re.findall(r"\]\(<?([^)>\s]+)>?\)", text), text


PAGES = [*site.sources(ROOT), ROOT/"nbs"/"index.ipynb", ROOT/"CONTRIBUTING.md", ROOT/"paper"/"results.md"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_of_a_source_has_a_target(path):
    links, text = text_links(path)
    for link in links:
        if re.match(r"[a-z]+:", link): continue
        target, _, anchor = link.partition("#")
        other = (path.parent/target).resolve() if target else path
        assert other.exists(), link
        if anchor and other.suffix in (".md", ".ipynb"): assert anchor.lower() in headings(text_links(other)[1]), link


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    return folder, site.write_site(folder, only=("index.html", "00_core.html", "study/00_files.html", "paper/03_readme.html"))


def test_the_site_is_linked_and_loads_nothing(built):
    folder, pages = built
    assert sorted(pages) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    assert site.faults(folder) == []
    index = (folder/"index.html").read_text(encoding="utf-8")
    assert 'href="00_core.html"' in index and "data:image/svg+xml;base64," in index
    assert "https://github.com/docvlm/docvlm/blob/main/data/results/nano" in index, "what is no page is in the repository"
    assert '<link rel="stylesheet" href="../style.css">' in (folder/"study/00_files.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("old, new, fault", [
    ('href="00_core.html"', 'href="gone.html"', "index.html links to gone.html"),
    ("<body>", '<body><script src="https://cdn.example/a.js"></script>', "index.html loads https://cdn.example/a.js"),
    ("<body>", '<body><a href="00_core.html#nowhere">a</a>', "index.html links to 00_core.html#nowhere, which has no such heading")])
def test_a_fault_is_found(built, tmp_path, old, new, fault):
    folder, _ = built
    for name in ("index.html", "00_core.html", "style.css"): (tmp_path/name).write_bytes((folder/name).read_bytes())
    text = (tmp_path/"index.html").read_text(encoding="utf-8")
    assert old in text
    (tmp_path/"index.html").write_text(text.replace(old, new), encoding="utf-8")
    assert fault in site.faults(tmp_path)


def test_every_figure_that_is_cited_has_a_source_to_open():
    "Every row of data/*.csv with a source names a page, a file or a paper."
    import csv
    rows = 0
    for path in sorted((ROOT/"data").glob("*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for column in ("source", "image_rule_source"):
                    if column not in row: continue
                    rows += 1
                    assert re.search(r"([\w-]+\.)+[a-z]{2,}(/|\b)|arXiv:\d{4}\.\d{5}", row[column]), (path.name, row)
                if path.name.startswith("published"): assert re.fullmatch(r"20\d\d(-\d\d){0,2}", row["date"]), row
    assert rows > 60
