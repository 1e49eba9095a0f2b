"Documents of several pages: PDF and TIFF, good, odd and broken; a row names its page."
import io
import json
import resource
import zlib

import numpy as np
import pypdfium2 as pdfium
import pytest
from PIL import Image, ImageDraw

from docvlm.core import open_study
from docvlm.data import load_splits, prepared_folder, summarize_split
from docvlm.inputs.leakage import fingerprints
from docvlm.inputs.folder import document_files, files_read, load_folder
from docvlm.inputs.images import MAX_PIXELS, open_page, page_count, pages_of
from docvlm.inputs.sources import rows_dataset
from docvlm.steps import documents_digest

BUDGET = 112_896


def drawn(text, size=(300, 400)):
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((20, 40), text, "black", font_size=48)
    return image


def saved(kind, *texts):
    stream, (first, *rest) = io.BytesIO(), map(drawn, texts)
    first.save(stream, kind, save_all=True, append_images=rest)
    return stream.getvalue()


def pdf(*objects, root=1, extra=b""):
    "A PDF of these objects, numbered from 1; its table of offsets is right."
    out, places = bytearray(b"%PDF-1.7\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    return bytes(out + b"trailer\n<< /Size %d /Root %d 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, root, extra, start))


def stream(content, about=b""): return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), about, content)


def one_page(box=b"0 0 300 400", content=b"0 0 1 rg 40 40 100 200 re f", resources=b"", page=b"", objects=(), extra=b""):
    return pdf(b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
               b"<< /Type /Page /Parent 2 0 R /MediaBox [%s] /Contents 4 0 R /Resources << %s >> %s >>" % (box, resources, page),
               stream(content), *objects, extra=extra)


def with_picture(width, height):
    "A page that shows a picture of so many pixels, which compresses to nothing."
    rows = zlib.compress(bytes((width + 7)//8)*height, 1)
    about = b"/Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceGray /BitsPerComponent 1 /Filter /FlateDecode" % (width, height)
    return one_page(content=b"q 200 0 0 200 50 50 cm /P Do Q", resources=b"/XObject << /P 5 0 R >>", objects=(stream(rows, about),))


LOCKED = one_page(objects=(b"<< /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >>" % (b"ab"*32, b"cd"*32),),
                  extra=b"/Encrypt 5 0 R /ID [<00> <00>]")
BROKEN = {"encrypted": (LOCKED, "encrypted PDF: save a copy without its password"), "empty": (b"", "not an image"),
          "no pages": (pdf(b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>"), "damaged, or without pages; export it again"),
          "half": (saved("PDF", "One", "Two")[:6000], "cut short; copy or export it again"),
          "no end": (saved("PDF", "One")[:-20], "cut short"), "a mark": (b"%PDF-1.7\n%%EOF\n", "unreadable PDF"),
          "noise": (b"%PDF-1.4\n" + bytes(range(256))*40 + b"%%EOF", "unreadable PDF"),
          "blank": (one_page(content=b""), "shows nothing"), "a strip": (one_page(b"0 0 10000 20"), "one side is over 200 times"),
          "a picture of 200 megapixels": (with_picture(20_000, 10_000), "over 100 megapixels"),
          "a page that leads nowhere": (one_page().replace(b"/Kids [3 0 R]", b"/Kids [9 0 R]"), "PDF"),
          "text": (b"Total: %PDF is missing", "not an image .* and not a PDF; save it as one of")}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_has_one_line_that_says_what_to_do(name):
    content, reason = BROKEN[name]
    with pytest.raises(ValueError, match=reason) as error: open_page(content, max_pixels=BUDGET)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("kind", ["PDF", "TIFF", "GIF"])
def test_each_page_is_the_one_that_is_named(kind):
    content = saved(kind, "1", "2", "3")
    assert page_count(content) == 3
    pages = [np.asarray(open_page(content, n, 120_000)[0].resize((30, 40)), float) for n in (1, 2, 3)]
    wanted = [np.asarray(drawn(str(n)).resize((30, 40)), float) for n in (1, 2, 3)]
    nearest = [min(range(3), key=lambda k: abs(page - wanted[k]).mean()) for page in pages]
    assert nearest == [0, 1, 2]
    with pytest.raises(ValueError, match="holds 3 pages; say which by `page`, a number from 1 to 3"): open_page(content)
    for number in (0, 4, -1):
        with pytest.raises(ValueError, match=f"has no page {number}; its pages are numbered from 1 to 3"): open_page(content, number)


@pytest.mark.parametrize("box", [b"0 0 595 842", b"0 0 14400 14400", b"0 0 3 4", b"0 0 2000 11", b"-100 -50 500.5 300.25"])
@pytest.mark.parametrize("budget", [784, BUDGET, 602_112])
def test_a_page_fills_its_budget_and_never_exceeds_it(box, budget):
    left, bottom, right, top = map(float, box.split())
    middle = b"0 0 1 rg %f %f %f %f re f" % (left + (right - left)/4, bottom + (top - bottom)/4, (right - left)/2, (top - bottom)/2)
    width, height = open_page(one_page(box, middle), max_pixels=budget)[0].size
    assert .7*budget < width*height <= budget or budget == 784 and width*height <= budget
    assert abs(width/height/((right - left)/(top - bottom)) - 1) < .2


def test_a_page_of_200_megapixels_takes_little_memory():
    content = one_page(b"0 0 14400 14400", b"0 0 1 rg 40 40 5000 5000 re f")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert open_page(content, max_pixels=BUDGET)[0].width in (335, 336)
    with pytest.raises(ValueError, match="over 100 megapixels"): open_page(with_picture(20_000, 10_000), max_pixels=BUDGET)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"
    width, height = open_page(content)[0].size
    assert width*height <= MAX_PIXELS


def test_a_turned_page_is_upright():
    page, _ = open_page(one_page(page=b"/Rotate 90"), max_pixels=BUDGET)
    assert page.width > page.height


def test_the_last_of_two_thousand_pages():
    document = pdfium.PdfDocument.new()
    for number in range(2000): document.new_page(200 + number, 300)
    document.import_pages(pdfium.PdfDocument(one_page()))
    document.save(content := io.BytesIO())
    content = content.getvalue()
    assert page_count(content) == 2001
    assert open_page(content, 2001, BUDGET)[0].size[0] > 200
    with pytest.raises(ValueError, match="holds 2,001 pages; say which"): open_page(content)
    with pytest.raises(ValueError, match="shows nothing"): open_page(content, 7)


def test_more_pages_than_are_read_are_refused(monkeypatch):
    monkeypatch.setattr("docvlm.inputs.images.MOST_PAGES", 2)
    for kind in ("PDF", "TIFF"):
        with pytest.raises(ValueError, match="holds over 2 pages; split it into several files"): page_count(saved(kind, "1", "2", "3"))


def write(folder, split, lines, **files):
    (folder/split).mkdir(parents=True, exist_ok=True)
    (folder/split/"metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, content in files.items(): (folder/split/name).write_bytes(content)


def line(name, page=None, **changed):
    return {"file_name": name, "question": "Total?", "answers": ["9.00"]} | ({} if page is None else {"page": page}) | changed


@pytest.fixture
def mine(tmp_path):
    "A folder of a PDF of three pages, a TIFF of two and a picture."
    for split in ("train", "test"):
        files = {"a.pdf": saved("PDF", f"{split} 1", f"{split} 2", f"{split} 3"), "b.tif": saved("TIFF", f"{split} one", f"{split} two"),
                 "c.png": saved("PNG", split)}
        write(tmp_path/"mine", split, [line("a.pdf", 1), line("a.pdf", 3), line("a.pdf", 3, question="Date?", answers=[""], field="date"),
                                       line("b.tif", "2"), line("c.png")], **files)
    return tmp_path/"mine"


def test_rows_name_document_page_and_field(mine, tmp_path):
    splits, skipped = load_folder(mine, tmp_path/"pages", BUDGET)
    rows = splits["train"]
    assert not skipped and [(row["doc_id"], row["pages"][0], row["field"]) for row in rows] == [
        ("train/a.pdf", 1, ""), ("train/a.pdf", 3, ""), ("train/a.pdf", 3, "date"), ("train/b.tif", 2, ""), ("train/c.png", 1, "")]
    assert len({row["images"][0] for row in rows}) == 4 and len({row["question_id"] for row in rows}) == 5
    assert rows[2]["answers"] == [""], "an empty answer is an answer"
    dataset = rows_dataset(rows)
    assert [page["rows"] for page in pages_of(dataset).values()] == [[0], [1, 2], [3], [4]]
    assert len({page["keys"] for page in pages_of(dataset).values()}) == 4
    assert len(fingerprints(dataset)) == 4
    told = summarize_split(dataset)
    assert told["pages"] == told["by_benchmark"]["docvqa"]["pages"] == 4 and told["questions"] == 5


@pytest.mark.parametrize("page, reason", [(4, "a.pdf: has no page 4"), (0, "numbered from 1"),
                                          (1.5, "not a page number"), ("x", "not a page number"), (True, "not a page number"), ([1, 9], "a.pdf: has no page 9")])
def test_a_row_with_a_wrong_page_is_listed(mine, tmp_path, page, reason):
    write(mine, "train", [line("a.pdf", page), line("c.png")])
    splits, skipped = load_folder(mine, tmp_path/"pages", BUDGET)
    assert len(splits["train"]) == 1 and len(skipped) == 1 and reason in skipped[0]["reason"]


def test_bad_documents_are_listed_and_the_others_are_used(mine, tmp_path):
    lines = [line(f"{n}.pdf") for n in range(len(BROKEN))]
    write(mine, "train", [*lines, line("c.png")], **{f"{n}.pdf": content for n, (content, _) in enumerate(BROKEN.values())})
    splits, skipped = load_folder(mine, tmp_path/"pages", BUDGET)
    assert len(splits["train"]) == 1 and len(skipped) == len(BROKEN)


def test_the_digest_covers_the_document_and_the_budget_decides_the_pages(mine, monkeypatch, tmp_path):
    before = documents_digest(mine)
    assert {"train/a.pdf", "test/b.tif"} <= set(files_read(mine))
    study = open_study("smoke", str(mine))
    monkeypatch.setattr(type(study), "cache_dir", tmp_path/"cache")
    splits = load_splits(study)
    sizes = [row["images"][0].size for row in splits["train"]]
    assert splits["train"]["pages"][:] == [[1], [3], [3], [2], [1]]
    assert .8*study.preset.max_pixels < sizes[0][0]*sizes[0][1] <= study.preset.max_pixels and sizes[4] == (300, 400)
    folder = prepared_folder(study)
    object.__setattr__(study, "preset", type(study.preset)(**{**vars(study.preset), "max_pixels": 4*study.preset.max_pixels}))
    assert prepared_folder(study) != folder
    write(mine, "train", [line("a.pdf", 2)])
    assert documents_digest(mine) != (changed := before)
    (mine/"train"/"a.pdf").write_bytes(saved("PDF", "other", "other 2"))
    assert documents_digest(mine) != changed


def test_documents_are_found_below_a_folder_and_the_rest_is_told(mine):
    (mine/"train"/"deep"/"er").mkdir(parents=True)
    (mine/"train"/"deep"/"er"/"D.PDF").write_bytes(b"")
    (mine/"train"/"link").symlink_to(mine/"test")
    files, left_out = document_files(mine)
    assert [path.relative_to(mine).as_posix() for path in files] == [
        "test/a.pdf", "test/b.tif", "test/c.png", "train/a.pdf", "train/b.tif", "train/c.png", "train/deep/er/D.PDF"]
    assert {item["row"]: item["reason"].split(";")[0] for item in left_out} == {
        "test/metadata.jsonl": left_out[0]["reason"], "train/link": "a link to a folder", "train/metadata.jsonl": left_out[0]["reason"]}
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"): document_files(mine/"none")


def test_threads_render_one_after_the_other(mine):
    from concurrent.futures import ThreadPoolExecutor
    content = (mine/"train"/"a.pdf").read_bytes()
    with ThreadPoolExecutor(4) as pool: sizes = list(pool.map(lambda n: open_page(content, 1 + n % 3, BUDGET)[0].size, range(24)))
    assert len(set(sizes)) == 1
