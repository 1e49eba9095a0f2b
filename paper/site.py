"""Write README and notebooks as one HTML site that loads nothing from the network, and check its links.

    python paper/site.py [FOLDER]    # default: _docs"""
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
from fastcore.foundation import Config
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parent.parent
STYLE = """
body { max-width: 60em; margin: 0 auto; padding: 0 1em 4em; font: 16px/1.5 system-ui, sans-serif; color: #222 }
nav { padding: .6em 0; border-bottom: 1px solid #ddd } nav a { margin-right: 1.2em }
a { color: #0072b2 } .anchor-link { visibility: hidden } img, svg { max-width: 100% }
pre, .highlight { background: #f6f6f6; overflow-x: auto } pre { padding: .6em; font-size: 13px; line-height: 1.4 }
.jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser { display: none }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 14px }
td, th { border: 1px solid #ddd; padding: .2em .6em } blockquote { border-left: 3px solid #ddd; padding-left: 1em }
"""


def sources(root):
    "The pages of the site, in reading order: place in the site by source, README first."
    nbs = root/"nbs"
    found = [path for path in sorted(nbs.rglob("*.ipynb")) if path.parent.name[0] != "." and path != nbs/"index.ipynb"]
    found.sort(key=lambda path: (path.parent != nbs, path))
    return {root/"README.md": "index.html"} | {
        path: path.relative_to(nbs).with_suffix(".html").as_posix() for path in found}


def read(path):
    "A source as a notebook; Markdown becomes one cell."
    if path.suffix == ".ipynb": return nbformat.read(path, as_version=4)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))])


def repository(root):
    "Address of a file in the repository, which the site links to for everything that is no page."
    settings = Config(root, "settings.ini")
    return f"{settings.git_url}/blob/{settings.branch}/"


def relink(html, source, pages, root):
    "Point links to pages of the site, or to the repository if their target is no page; anchors ignore case."
    up = "../"*pages[source].count("/")
    ids = {name.lower(): name for name in re.findall(r'\bid="([^"]+)"', html)}
    def changed(match):
        link, _, anchor = match[1].partition("#")
        if re.match(r"[a-z]+:", match[1]): return match[0]
        if not link: return f'href="#{ids.get(anchor.lower(), anchor)}"'
        # a table of notebooks in an output has links relative to nbs/
        target = next((path for base in (source.parent, root/"nbs") if (path := (base/link).resolve()).exists()), None)
        if target is None: return match[0]
        if target in pages: return f'href="{up}{pages[target]}{"#" + anchor if anchor else ""}"'
        return f'href="{repository(root)}{target.relative_to(root).as_posix()}"'
    return re.sub(r'href="([^"]*)"', changed, html)


def page(source, pages, root, exporter):
    "One page of the site."
    body, _ = exporter.from_notebook_node(read(source), resources={"metadata": {"path": str(source.parent)}})
    order, up = list(pages), "../"*pages[source].count("/")
    at = order.index(source)
    near = [("Contents", order[0])] + [(f"← {order[at - 1].stem}", order[at - 1])]*(at > 1)
    near += [(f"{order[at + 1].stem} →", order[at + 1])] if at + 1 < len(order) else []
    links = "".join(f'<a href="{up}{pages[path]}">{name}</a>' for name, path in near)
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{source.stem} · docvlm</title>'
            f'<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="{up}style.css"></head>\n'
            f"<body><nav>{links}</nav>\n{relink(body, source, pages, root)}\n</body></html>\n")


def write_site(folder, root=ROOT, only=None):
    "Write the site into a folder; `only` some pages, as in tests. The places of the pages."
    pages = {source: place for source, place in sources(root).items() if only is None or place in only}
    exporter = HTMLExporter(template_name="basic", embed_images=True)
    for source, place in pages.items():
        (folder/place).parent.mkdir(parents=True, exist_ok=True)
        (folder/place).write_text(page(source, pages, root, exporter), encoding="utf-8")
    colours = HtmlFormatter().get_style_defs(".highlight")
    (folder/"style.css").write_text(f"{STYLE}{colours}\n", encoding="utf-8")
    return list(pages.values())


class Links(HTMLParser):
    "Collects what a page links to, what it loads, and its anchors."
    def __init__(self):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "a" and attributes.get("href"): self.links.append(attributes["href"])
        loaded = attributes.get("src") or (attributes.get("href") if tag == "link" else None)
        if loaded: self.loads.append(loaded)
        if attributes.get("id"): self.anchors.add(attributes["id"])


def faults(folder):
    "Links of a site without a target, and what it would load from the network."
    pages = {path: Links() for path in sorted(folder.rglob("*.html"))}
    for path, found in pages.items(): found.feed(path.read_text(encoding="utf-8"))
    told = []
    for path, found in pages.items():
        place = path.relative_to(folder).as_posix()
        told += [f"{place} loads {load[:80]}" for load in found.loads
                 if not load.startswith("data:") and not (path.parent/load).exists()]
        for link in found.links:
            if re.match(r"[a-z]+:", link): continue
            target, _, anchor = link.partition("#")
            other = (path.parent/target).resolve() if target else path
            if not other.exists(): told.append(f"{place} links to {link}")
            elif anchor and anchor not in pages[other].anchors:
                told.append(f"{place} links to {link}, which has no such heading")
    return told


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT/"_docs").resolve()
    print(f"{len(write_site(folder))} pages in {folder}")
    if told := faults(folder): sys.exit("\n".join(told))
