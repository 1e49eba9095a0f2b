"One page for every door, whatever its file; a folder's digest that changes with what is read of it, and only so."
import base64
import io
import json
import os
import random
import re
import struct
import sys
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Image, List, concatenate_datasets
from PIL import Image as PILImage
from PIL import TiffImagePlugin

from docvlm.inputs import retrieval as ocr
from docvlm.apps.ask import read_upload
from docvlm.presets import Preset, base_digest, get_preset
from docvlm.core import Study, open_study
from docvlm import steps
from docvlm.files import digest_of
from docvlm.steps import copies_digest, documents_digest
from docvlm.baselines.endpoint import page_url
from docvlm.inputs.folder import load_folder
from docvlm.inputs.images import decode_page, open_page, page_size
from docvlm.inputs.folder import files_read
from docvlm.model import load_processor
from docvlm.engine.attention import prepare_images
from docvlm.inputs.sources import ROW_FEATURES, rows_dataset


def encoded(image, kind="PNG", **options):
    image.save(stream := io.BytesIO(), kind, **options)
    return stream.getvalue()


def drawn(mode="L", size=(48, 32), seed=0):
    "Dark blocks on white paper, the upper left one of them."
    rng = random.Random(seed)
    page = PILImage.new("RGB", size, "white")
    page.paste("black", (0, 0, size[0]//3, size[1]//4))
    for _ in range(5):
        x, y = rng.randrange(size[0] - 8), rng.randrange(size[1] - 8)
        page.paste(tuple(rng.randrange(200) for _ in range(3)), (x, y, x + 8, y + 6))
    return page if mode == "RGB" else page.convert("L") if mode == "L" else page.convert(mode)


def grey(levels, dtype=np.uint16, seed=0):
    "A page whose white is the number `levels`."
    return (np.asarray(drawn(seed=seed), np.float64)/255*levels).astype(dtype)


def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png, kind, data): return png[:33] + chunk(kind, data) + png[33:]


def png(width, height, depth, colour, pixels, *extra):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(samples, bits=16, photometric=1, sample_format=None, extra=()):
    "An uncompressed TIFF of one sample a pixel, written by hand: `samples` is its bytes or an array."
    height, width = samples.shape if isinstance(samples, np.ndarray) else (32, 48)
    data = samples.tobytes() if isinstance(samples, np.ndarray) else samples
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height, 279: len(data)}
    tags |= dict(extra) | ({339: sample_format} if sample_format else {})
    tags[273] = 8 + 2 + 12*len(tags) + 4  # where the samples begin
    lines = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + lines + bytes(4) + data


def folder_of(path, pages, questions=None):
    "A documents folder with the pages in train/, one of them in test/ too."
    for split in ("train", "test"):
        (path/split).mkdir(parents=True)
        lines = []
        for name, content in pages.items() if split == "train" else [("page.png", encoded(drawn()))]:
            (path/split/name).write_bytes(content)
            lines.append({"file_name": name, "question": "Total?", "answers": ["9.00"]})
        (path/split/"metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


def array(page): return np.asarray(page)


# --- one page for every door

MODES = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
         "GIF": ("1", "L", "P"), "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"),
         "WEBP": ("RGB", "RGBA"), "BMP": ("1", "L", "P", "RGB"), "PPM": ("1", "L", "RGB", "I;16")}


def drawn_file(kind, mode, orientation, rng):
    "A file of that format, mode and orientation."
    page = drawn("RGB", (rng.randrange(40, 70), rng.randrange(30, 60)), rng.randrange(1000))
    if mode == "I;16": page = PILImage.fromarray(np.asarray(page.convert("L")).astype(np.uint16)*257)
    elif mode in ("LA", "RGBA"):
        page = page.convert(mode[:-1])
        page.putalpha(PILImage.effect_noise(page.size, 90).convert("L"))
    else: page = (page if mode in ("P", "RGB", "CMYK", "YCbCr") else page.convert("L")).convert(mode)
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    options = ({"exif": exif} if orientation > 1 else {}) | ({"lossless": True} if kind == "WEBP" else {})
    return encoded(page, kind, **options)


def drawn_files():
    "Files of every mode, format and orientation that a page may come in; drawn by a seed."
    rng, found = random.Random(0), {}
    for kind, modes in MODES.items():
        for mode in modes:
            turns = [rng.randrange(2, 9)] if kind in ("PNG", "JPEG", "TIFF", "WEBP") else []
            for turn in (1, *turns): found[f"{mode} {kind} {turn}"] = drawn_file(kind, mode, turn, rng)
    black = drawn("RGB").point(lambda value: value//4)  # dark, on a transparent black
    for name, page, clear in (("RGB", black, (0, 0, 0)), ("RGB of white", drawn("RGB"), (255, 255, 255)),
                              ("L", black.convert("L"), 0), ("1", drawn("1"), 255), ("P", drawn("P"), 0)):
        found[f"{name} with a transparent colour"] = encoded(page, "PNG", transparency=clear)
    found["P with an alpha for every colour"] = encoded(drawn("P"), "PNG", transparency=bytes(range(256)))
    found["P GIF with a transparent colour"] = encoded(drawn("P"), "GIF", transparency=0)
    deep, exif = encoded(PILImage.fromarray(grey(65535))), PILImage.Exif()
    found["16-bit grey with a transparent sample"] = with_chunk(deep, b"tRNS", struct.pack(">H", 0))
    exif[0x0112] = 6
    late = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    found["EXIF behind the pixels"] = encoded(drawn())[:-12] + late + encoded(drawn())[-12:]
    for bits in (10, 12): found[f"{bits} bits in 16"] = encoded(PILImage.fromarray(grey(2**bits - 1)))
    found["floats to 1"] = encoded(PILImage.fromarray(grey(1, np.float32)), "TIFF")
    found["12 bits, 0 is white"] = tiff(4095 - grey(4095), photometric=0)
    return found


FILES = drawn_files()


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    "What each door makes of each file: {door: {name: pixels}}."
    folder = tmp_path_factory.mktemp("doors")
    contents = {f"{number}.bin": content for number, content in enumerate(FILES.values())}
    rows, skipped = load_folder(folder_of(folder/"mine", contents), folder/"pages")
    assert not skipped
    study = dict(zip(FILES, rows_dataset(rows["train"])))
    stored = dict(zip(FILES, rows_dataset(rows["train"]).cast_column("images", List(Image(decode=False)))))
    record = {name: "x" for name in ROW_FEATURES} | {"answers": ["x"], "doc_types": [], "pages": [1], "page_count": 1, "evidence_pages": []}
    hub_rows = rows_dataset([record | {"images": [{"bytes": content, "path": None}]} for content in FILES.values()])
    hub = dict(zip(FILES, concatenate_datasets([hub_rows, hub_rows]).select(range(len(FILES)))))
    raw = dict(zip(FILES, hub_rows.cast_column("images", List(Image(decode=False)))))
    seen = lambda url: array(PILImage.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))
    return {"ask": {name: array(read_upload(content)[0]) for name, content in FILES.items()},
            "study": {name: array(study[name]["images"][0]) for name in FILES},
            "hub": {name: array(hub[name]["images"][0]) for name in FILES},
            "file": {name: array(PILImage.open(stored[name]["images"][0]["path"]).convert("RGB")) for name in FILES},
            "endpoint": {name: seen(page_url(stored[name]["images"][0])) for name in FILES},
            "endpoint, hub": {name: seen(page_url(raw[name]["images"][0])) for name in FILES}}


@pytest.mark.parametrize("name", FILES)
def test_every_door_sees_the_same_pixels(doors, name):
    page = doors["ask"][name]
    assert page.ndim == 3 and page.shape[:2][::-1] == page_size(FILES[name]), "a size from a header is the page's"
    for door, pages in doors.items(): assert pages[name].shape == page.shape and (pages[name] == page).all(), door


def test_model_and_ocr_are_shown_that_page(monkeypatch):
    processor, shown = load_processor(get_preset("smoke")), []
    monkeypatch.setattr(ocr, "_engine", lambda: lambda pixels, use_cls: (shown.append(pixels), ([], None))[1])
    for name, content in FILES.items():
        page, raw = decode_page(content)[0], PILImage.open(io.BytesIO(content))
        if raw.format == "TIFF": raw.load()
        for image in (page, raw) if "transparent s" not in name and raw.format != "TIFF" else (page,):
            pixels, grids = prepare_images(processor, [image])
            wanted, wanted_grids = prepare_images(processor, [PILImage.fromarray(array(page))])
            assert grids == wanted_grids and (pixels[0] == wanted[0]).all(), name
            ocr.read_lines(image)
            assert (shown.pop()[..., ::-1] == array(page)).all(), name


def test_a_transparent_colour_is_white_whatever_the_depth():
    for depth in (1, 2, 4):  # Pillow scales the samples of a few bits and not the transparent one
        top = 2**depth - 1
        samples = [top, 0, top, 0, top, 0, 0, 0]
        packed = int("".join(f"{sample:0{depth}b}" for sample in samples), 2).to_bytes(depth, "big")
        for clear in (0, top):
            content = png(8, 2, depth, 0, (b"\0" + packed)*2, chunk(b"tRNS", struct.pack(">H", clear)))
            found = array(decode_page(content)[0])[0, :, 0].tolist()
            assert found == [255 if sample == clear else 255*sample//top for sample in samples], (depth, clear)
    pixels = struct.pack(">6H", 0x1234, 0, 0, 0x8000, 0x9000, 0xa000)
    clear = chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0, 0))
    deep = png(2, 1, 16, 2, b"\0" + pixels, clear)
    assert array(decode_page(deep)[0])[0].tolist() == [[255, 255, 255], [128, 144, 160]]


def test_a_drawn_page_is_kept_as_it_is(tmp_path):
    contents = {"page.png": encoded(drawn("RGB")), "photo.jpg": encoded(drawn("RGB"), "JPEG")}
    rows, _ = load_folder(folder_of(tmp_path/"mine", contents), tmp_path/"pages")
    assert [Path(row["images"][0]).read_bytes() for row in rows["train"]] == list(contents.values())


# --- which number is white

def stored(samples, kind="TIFF"): return encoded(PILImage.fromarray(samples), kind)


TOP = {bits: 2**bits - 1 for bits in (4, 8, 10, 12, 14, 16, 31, 32)}
SAMPLES = {
    **{f"{bits} bits in 16, PNG": stored(grey(TOP[bits]), "PNG") for bits in (4, 8, 10, 12, 14, 16)},
    **{f"{bits} bits in 16, TIFF": stored(grey(TOP[bits])) for bits in (4, 8, 10, 12, 14, 16)},
    **{f"{bits} bits in 16, 0 is white": tiff(TOP[bits] - grey(TOP[bits]), photometric=0) for bits in (10, 12, 14, 16)},
    **{f"floats to {top}": stored(grey(top, np.float32)) for top in (1, 255, 1023, 4095, 65535, 1e6)},
    **{f"floats to {top}, 0 is white": tiff(top - grey(top, np.float32), 32, 0, 3) for top in (1, 255, 65535)},
    "floats that overshoot": stored(grey(1.2, np.float32) - np.float32(.05)),
    "floats below 0": stored(grey(2, np.float32) - 1),
    "signed 16 bits": tiff((grey(65535).astype(np.int32) - 32768).astype(np.int16), sample_format=2),
    "signed 16 bits, none below 0": tiff(grey(4095).astype(np.int16), sample_format=2),
    "signed 8 bits": tiff((grey(255).astype(np.int32) - 128).astype(np.int8), 8, sample_format=2),
    "unsigned 32 bits": tiff(grey(TOP[32], np.uint32), 32, sample_format=1),
    "12 bits in unsigned 32": tiff(grey(4095, np.uint32), 32, sample_format=1),
    "signed 32 bits": tiff(grey(TOP[31], np.int32), 32, sample_format=2),
    "0 and 1 in 16 bits": stored(grey(1)),
    "largest sample stated": tiff(grey(3000) + 100, extra={280: 100, 281: 3100}),
    "largest sample stated, wrongly": tiff(grey(4095), extra={281: 255}),
    "largest sample stated, as the format's": tiff(grey(4095), extra={281: 65535}),
    "the other byte order": stored(grey(4095).astype(">u2")),
    "a map of 1,023": b"P5 48 32 1023\n" + grey(1023).astype(">u2").tobytes(),
    "a map of 65,535": b"P5 48 32 65535\n" + grey(4095).astype(">u2").tobytes(),
    "a map of floats": b"Pf 48 32 -1.0\n" + grey(1, "<f4")[::-1].tobytes(),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_paper_is_white_and_ink_is_black(name):
    page = array(open_page(SAMPLES[name])[0])[..., 0].astype(int)
    wanted = np.asarray(drawn()).astype(int)
    assert page.max() > 200 and page.min() < 40
    if not re.match("4 bits|0 and 1|floats that", name): assert abs(page - wanted).max() <= 3
    assert (page[0, 0] < 40) and (page[-1, -1] > 200) == (wanted[-1, -1] > 200)


def test_twelve_bits_of_a_twelve_bit_file():
    samples = grey(4095).ravel().tolist()
    packed = b"".join(struct.pack(">I", a << 12 | b)[1:] for a, b in zip(samples[::2], samples[1::2]))
    page = array(open_page(tiff(packed, 12))[0])[..., 0].astype(int)
    assert abs(page - np.asarray(drawn()).astype(int)).max() <= 2
    dim = b"".join(struct.pack(">I", a//8 << 12 | b//8)[1:] for a, b in zip(samples[::2], samples[1::2]))
    assert array(open_page(tiff(dim, 12))[0]).max() in range(28, 36), "the file says 12 bits: this page is dark"


def test_what_is_no_number_is_paper():
    odd = grey(1, np.float32)
    odd[5, :3] = np.nan, np.inf, -np.inf
    page = array(open_page(encoded(PILImage.fromarray(odd), "TIFF"))[0])[..., 0]
    assert page[5, :3].tolist() == [255, 255, 0] and page[0, 0] < 40


BLANK = (("L", 0, "PNG"), ("L", 255, "PNG"), ("RGB", "red", "JPEG"), ("1", 0, "PNG"), ("P", 3, "GIF"),
         ("RGBA", (9, 9, 9, 0), "PNG"), ("I;16", 900, "PNG"))


@pytest.mark.parametrize("content", [
    *(encoded(PILImage.new(mode, (40, 30), colour), kind) for mode, colour, kind in BLANK),
    *(stored(np.full((9, 9), value, np.float32)) for value in (0, 1, np.nan)),
    *(encoded(drawn("L").point(lambda v: v//100*step)) for step in (1, 7))],
    ids=[*(f"{mode} of {colour}" for mode, colour, _ in BLANK), "0.0", "1.0", "no number", "to 2 of 255", "to 14 of 255"])
def test_a_page_that_shows_nothing_is_refused(content, tmp_path):
    with pytest.raises(ValueError, match="shows nothing: every pixel has the same colour"): read_upload(content)
    mine = folder_of(tmp_path/"mine", {"page.png": encoded(drawn()), "blank": content})
    rows, skipped = load_folder(mine, tmp_path/"pages")
    assert len(rows["train"]) == 1 and "shows nothing" in skipped[0]["reason"]


def test_few_bits_of_colour_in_sixteen_are_refused():
    samples = np.repeat(grey(4095)[..., None], 3, -1).astype(">u2")
    deep = png(48, 32, 16, 2, b"".join(b"\0" + row.tobytes() for row in samples))
    for content in (deep, b"P6 48 32 65535\n" + samples.tobytes()):
        with pytest.raises(ValueError, match="fill only 1[67] of 256 levels .*save 8 bits per colour"): open_page(content)
    assert array(open_page(b"P6 48 32 4095\n" + samples.tobytes())[0]).max() == 255


# --- several pages in a file

def frames(kind, count):
    return encoded(drawn("RGB"), kind, save_all=True, append_images=[drawn("RGB", seed=n) for n in range(1, count)])


@pytest.mark.parametrize("kind, count", [("TIFF", 2), ("TIFF", 3), ("GIF", 2), ("WEBP", 3), ("PNG", 2)])
def test_a_file_of_several_pages_is_read_as_a_whole(kind, count, tmp_path):
    said, content = f"holds {count} pages; say which by `page`, a number from 1 to {count}", frames(kind, count)
    with pytest.raises(ValueError, match=said): open_page(content)
    assert len(read_upload(content)) == count
    mine = folder_of(tmp_path/"mine", {"page.png": encoded(drawn()), "scan": content})
    rows, skipped = load_folder(mine, tmp_path/"pages")
    assert not skipped and len(rows["train"]) == 2 and rows["train"][1]["pages"] == list(range(1, count + 1))


@pytest.mark.parametrize("content", [
    b"P5 48 32 255\n" + bytes(range(256))*6, b"P4 48 32\n" + bytes(range(192)), encoded(drawn("RGB"), "PPM"),
    b"P5 48 32 65535\n" + grey(65535).astype(">u2").tobytes()], ids=["P5", "P4", "P6", "16 bits"])
def test_maps_one_after_the_other_are_refused(content):
    assert open_page(content)[0].size == open_page(content + b"\n# the end")[0].size == (48, 32)
    with pytest.raises(ValueError, match="holds several pages"): open_page(content*2)


def tiff_frames(*kinds):
    "A TIFF with a frame of each NewSubfileType."
    stream = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(stream, True) as writer:
        for number, kind in enumerate(kinds):
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            if kind is not None: tags[254] = kind
            page = drawn("1" if kind == 4 else "RGB", (24, 16) if kind == 1 else (48, 32), number)
            page.save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
    return stream.getvalue()


def tiff_of_an_unreadable_second_page():
    stream = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(stream, True) as writer:
        for content in (encoded(drawn(), "TIFF"), tiff(grey(255, np.float64), 64, sample_format=3)):
            writer.write(content)
            writer.newFrame()
    return stream.getvalue()


def test_smaller_copies_and_masks_are_no_pages():
    for kinds, page in (((0, 1), 0), ((0, 1, 1, 4), 0), ((1, 0), 1), ((2, 4), 0), ((None, 1), 0), ((1,), 0)):
        wanted = drawn("RGB", (24, 16) if kinds == (1,) else (48, 32), page)
        assert (array(open_page(tiff_frames(*kinds))[0]) == array(wanted)).all(), kinds
    with pytest.raises(ValueError, match="holds 2 pages"): open_page(tiff_of_an_unreadable_second_page())
    for kinds in ((0, 0, 1), (2, 2), (None, None, 4)):
        with pytest.raises(ValueError, match="holds 2 pages"): open_page(tiff_frames(*kinds))


def test_what_phones_add_to_a_picture_is_no_page(tmp_path):
    content = frames("MPO", 2)
    page, suffix = open_page(content)
    assert suffix == ".jpeg" and (array(page) == array(PILImage.open(io.BytesIO(content)).convert("RGB"))).all()
    rows, skipped = load_folder(folder_of(tmp_path/"mine", {"photo.jpg": content}), tmp_path/"pages")
    assert not skipped and (array(rows_dataset(rows["train"])[0]["images"][0]) == array(page)).all()


# --- what a folder's digest covers

@pytest.fixture
def mine(tmp_path):
    return folder_of(tmp_path/"mine", {"page.png": encoded(drawn()), "second.png": encoded(drawn(seed=2))})


def test_only_what_is_read_changes_the_digest(mine):
    before = documents_digest(mine)
    (mine/"train"/".DS_Store").write_bytes(b"\0")
    (mine/"Thumbs.db").write_bytes(b"\0")
    (mine/"notes.txt").write_text("call back")
    (mine/"train"/"unnamed.png").write_bytes(encoded(drawn()))
    (mine/"test"/".ipynb_checkpoints").mkdir()
    (mine/"test"/".ipynb_checkpoints"/"metadata.jsonl").write_text("{}")
    (mine/"train"/"loop").symlink_to(mine)
    (mine/"train"/"nowhere").symlink_to("none")
    os.mkfifo(mine/"train"/"pipe")
    os.utime(mine/"train"/"page.png", (0, 0))
    assert documents_digest(mine) == before
    seen, second = {before}, mine/"train"/"second.png"
    for change in (lambda: (mine/"train"/"page.png").write_bytes(encoded(drawn(seed=3))), second.unlink,
                   lambda: (mine/"test"/"metadata.jsonl").write_text("{}"), lambda: second.symlink_to("page.png"),
                   lambda: (second.unlink(), second.symlink_to("/etc/hosts")),
                   (mine/"test"/"metadata.jsonl").unlink, lambda: (mine/"train").rename(mine/"old")):
        change()
        assert documents_digest(mine) not in seen
        seen.add(documents_digest(mine))


@pytest.mark.parametrize("linked", ["train", "test", "train/metadata.jsonl", "train/page.png", "."])
def test_what_lies_behind_a_link_is_digested(mine, tmp_path, linked):
    store = tmp_path/"store"
    target = mine/linked if linked != "." else mine
    target.rename(store)
    target.symlink_to(store)
    file = store if "/" in linked else store/"train"/"page.png" if linked == "." else store/"page.png"
    study, before = Study(get_preset("smoke"), str(mine)), documents_digest(mine)
    inputs = study.step("data").inputs()["documents"]
    assert inputs == before
    file.write_bytes(file.read_bytes() + b"\n")
    if linked == "train/page.png":
        assert documents_digest(mine) == before, "a page that is refused is not read"
        assert "leaves the folder" in load_folder(mine, tmp_path/"pages")[1][0]["reason"]
        (mine/"train"/"page.png").unlink()
        (mine/"train"/"page.png").symlink_to("second.png")
        file = mine/"train"/"second.png"
        before = documents_digest(mine)
        file.write_bytes(file.read_bytes() + b"\n")
    assert documents_digest(mine) != before and study.step("data").inputs()["documents"] != before


def test_a_study_digests_a_folder_once_for_a_question(mine, tmp_path, monkeypatch):
    names = [f"step {number}" for number in range(7)]
    monkeypatch.setattr(steps, "STEPS", {name: ("02_data", tuple(names[:number]), ()) for number, name in enumerate(names)})
    monkeypatch.setattr(Study, "results_dir", tmp_path/"results")
    monkeypatch.setattr(Study, "run_dir", tmp_path/"run")
    study, calls = Study(get_preset("smoke"), str(mine)), []
    for name in names: study.step(name).run(lambda: {"name": name})
    monkeypatch.setattr(steps, "documents_digest", lambda folder: calls.append(folder) or documents_digest(folder))
    assert study.step(names[-1]).state() == "fresh" and len(calls) == 1, "each step asks for all earlier ones"
    study.result(names[-1])
    assert len(calls) == 2, "but a later question looks again"
    (mine/"train"/"page.png").write_bytes(b"changed")
    assert study.step(names[-1]).state() == f"{study.name}/step 0: inputs, code or parameters have changed; run `docvlm-study --preset smoke --documents={mine}`"


def test_a_page_that_is_unchanged_is_read_once(mine, monkeypatch):
    before, read = documents_digest(mine), []
    monkeypatch.setattr(steps, "digest_of", lambda *things: read.extend(t for t in things if isinstance(t, Path)) or digest_of(*things))
    assert documents_digest(mine) == before and not read
    (mine/"train"/"page.png").write_bytes((mine/"train"/"page.png").read_bytes())
    assert documents_digest(mine) == before and [path.name for path in read] == ["page.png"]


def test_a_link_that_changes_its_target_changes_the_digest(mine, tmp_path):
    (mine/"train").rename(tmp_path/"one")
    (mine/"train").symlink_to(tmp_path/"one")
    before = documents_digest(mine)
    (mine/"train").unlink()
    (tmp_path/"one").rename(tmp_path/"two")
    (mine/"train").symlink_to(tmp_path/"two")
    assert documents_digest(mine) == before, "the same files elsewhere"
    (tmp_path/"two"/"page.png").write_bytes(encoded(drawn(seed=9)))
    assert documents_digest(mine) != before


@pytest.mark.parametrize("make", [
    lambda path: None, lambda path: path.symlink_to(path), lambda path: path.symlink_to("/dev/zero"), os.mkfifo,
    lambda path: path.symlink_to("/dev"), lambda path: path.mkdir(), lambda path: path.symlink_to("."),
    lambda path: path.write_bytes(b"\xff\0[")],
    ids=["nothing", "loop", "device", "pipe", "devices", "empty folder", "its own folder", "bytes"])
@pytest.mark.parametrize("place", ["train", "train/metadata.jsonl", "train/page.png"])
def test_a_broken_folder_has_a_digest(mine, place, make):
    before, path = documents_digest(mine), mine/place
    path.rename(mine/"aside")
    make(path)
    assert documents_digest(mine) not in ("", before)
    assert open_study("smoke", str(mine)).step("data").state() == "no result yet"


def test_a_page_of_gigabytes_is_neither_read_nor_digested(mine, tmp_path):
    with (mine/"train"/"page.png").open("wb") as file: file.truncate(2**40)
    assert documents_digest(mine)
    assert "of 1099.5 GB: over 1 GB" in load_folder(mine, tmp_path/"pages")[1][0]["reason"]


def test_the_reader_opens_what_the_digest_covers(mine, tmp_path):
    "Every file below the folder that is opened while it is read, by whatever means."
    (mine/"train"/"notes.txt").write_text("call back")
    names = ("none.png", "notes.txt", "../test/page.png")
    lines = [{"file_name": name, "question": "Who?", "answers": ["A"]} for name in names]
    lines.append({"file_name": "second.png", "question": "", "answers": []})
    with (mine/"train"/"metadata.jsonl").open("a") as file:
        for line in lines: file.write("\n" + json.dumps(line))
    opened, watching = set(), [True]
    def watch(event, arguments):
        if event == "open" and watching and str(arguments[0]).startswith(str(mine)): opened.add(str(arguments[0]))
    sys.addaudithook(watch)
    load_folder(mine, tmp_path/"pages")
    watching.clear()
    assert opened == {str(path) for path in files_read(mine).values() if not isinstance(path, str)}


# --- names in Unicode

NFC, NFD = (unicodedata.normalize(form, "Überweisung für José.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("named, stored", [(NFC, NFD), (NFD, NFC), (NFC, NFC), (NFD, NFD)])
@pytest.mark.parametrize("inner", ["", unicodedata.normalize("NFD", "Märchen/")])
def test_a_page_is_found_however_its_name_is_spelt(mine, tmp_path, named, stored, inner):
    (mine/"train"/inner).mkdir(exist_ok=True)
    (mine/"train"/inner/stored).write_bytes(encoded(drawn(seed=5)))
    line = {"file_name": unicodedata.normalize("NFC", inner) + named, "question": "Total?", "answers": ["9.00"]}
    (mine/"train"/"metadata.jsonl").write_text(json.dumps(line))
    rows, skipped = load_folder(mine, tmp_path/"pages")
    assert not skipped and rows["train"][0]["doc_id"] == "train/" + unicodedata.normalize("NFC", inner) + NFC
    before = documents_digest(mine)
    (mine/"train"/inner/stored).rename(mine/"train"/inner/(NFC if stored == NFD else NFD))
    assert documents_digest(mine) == before, "the same page in another spelling"
    (mine/"train"/inner/(NFC if stored == NFD else NFD)).write_bytes(b"")
    assert documents_digest(mine) != before


def test_a_name_is_taken_as_it_is_written(tmp_path):
    names = ["a b.png", "a\u200eb.png", " a b.png", "a b.png "]
    folder = folder_of(tmp_path/"names", {name: encoded(drawn(seed=n)) for n, name in enumerate(names)})
    splits, skipped = load_folder(folder, tmp_path/"pages")
    assert not skipped and len({row["images"][0] for row in splits["train"]}) == len(names)
    assert {f"train/{name}" for name in names} <= set(files_read(folder))


def test_blanks_around_a_name_that_no_file_has_are_forgiven(tmp_path):
    folder = folder_of(tmp_path/"names", {"a.png": encoded(drawn())})
    for split in ("train", "test"):
        file = folder/split/"metadata.jsonl"
        file.write_text(file.read_text().replace('"a.png"', '"a.png "'))
    assert not load_folder(folder, tmp_path/"pages")[1]


def test_sixteen_bit_ink_on_clear_paper_is_a_page():
    ink = np.zeros((24, 40, 4), ">u2")
    ink[4:9, 4:20, 3] = 65535
    raw = b"".join(b"\0" + row.tobytes() for row in ink)
    page, _ = open_page(png(40, 24, 16, 6, raw))
    assert array(page)[5, 5].tolist() == [0, 0, 0] and array(page)[0, 0].tolist() == [255, 255, 255]


def test_two_names_that_differ_in_spelling_only_are_two_pages(mine, tmp_path):
    for seed, name in enumerate((NFC, NFD)): (mine/"train"/name).write_bytes(encoded(drawn(seed=seed)))
    third = unicodedata.normalize("NFD", NFC[:-6]) + NFC[-6:]  # spelt half and half
    lines = [{"file_name": name, "question": "Total?", "answers": ["9.00"]} for name in (NFC, NFD, third)]
    (mine/"train"/"metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows, skipped = load_folder(mine, tmp_path/"pages")
    assert [row["doc_id"] for row in rows["train"]] == [f"train/{NFC}", f"train/{NFD}"]
    assert "not found" in skipped[0]["reason"]
    assert (array(rows_dataset(rows["train"])[1]["images"][0]) == array(open_page(mine/"train"/NFD)[0])).all()


# --- other inputs

def test_a_base_is_what_is_loaded_of_it(tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "merges.txt"): (tmp_path/name).write_text(name)
    preset = Preset(**{**{name: None for name in Preset.__annotations__}, "base": str(tmp_path)})
    before = base_digest(preset)
    for name in (".DS_Store", "._model.safetensors", "README.md", "notes.txt"): (tmp_path/name).write_text("x")
    (tmp_path/".ipynb_checkpoints").mkdir()
    assert base_digest(preset) == before
    seen = {before}
    (tmp_path/"additional_chat_templates").mkdir()
    templates = "chat_template.jinja", "additional_chat_templates/a.jinja"
    for name in ("config.json", "merges.txt", "pytorch_model.bin", *templates):
        (tmp_path/name).write_text("changed")
        assert base_digest(preset) not in seen
        seen.add(base_digest(preset))


def test_copies_of_data_sets_are_inputs_of_the_data_step(tmp_path, monkeypatch):
    from docvlm import steps
    (tmp_path/"data").mkdir()
    (tmp_path/"copy"/"data").mkdir(parents=True)
    parquet = tmp_path/"copy"/"data"/"train-0.parquet"
    parquet.write_bytes(b"one")
    lines = "name,split,hub_id,files\na,train,copy,data/*.parquet\nb,test,no/copy,*.parquet\n"
    (tmp_path/"data"/"sources.csv").write_text(lines)
    monkeypatch.setattr(steps, "root", lambda: tmp_path)
    before = copies_digest()
    assert before == copies_digest()
    parquet.write_bytes(b"other")
    assert copies_digest() != before
    (tmp_path/"copy"/"README.md").write_text("x")
    (tmp_path/"copy"/"data"/"test-0.parquet").write_bytes(b"three")
    monkeypatch.setattr(steps, "copies_digest", lambda: "one")
    preset = get_preset("qwen2-vl-2b")
    inputs = Study(preset).step("data").inputs()
    monkeypatch.setattr(steps, "copies_digest", lambda: "two")
    changed = Study(preset).step("data").inputs()
    assert inputs["files"] != changed["files"] and {**inputs, "files": ""} == {**changed, "files": ""}
    nano = Study(get_preset("nano"))
    assert nano.step("data").inputs() == nano.step("data").inputs() and "documents" not in nano.step("data").inputs()


def test_the_benchmarks_asked_beside_a_users_documents_are_inputs_of_the_evaluation(tmp_path, monkeypatch):
    from docvlm import steps
    (tmp_path/"data").mkdir()
    (table := tmp_path/"data"/"sources.csv").write_text("name,split,hub_id,files\na,test,some/repository,*.parquet\n")
    monkeypatch.setattr(steps, "root", lambda: tmp_path)
    monkeypatch.setattr(steps, "documents_digest", lambda folder: "documents")
    monkeypatch.setattr(steps.Step, "read", lambda *given: {})
    monkeypatch.setattr(steps, "base_digest", lambda preset: "base")
    of = lambda documents, step: Study(get_preset("qwen2-vl-2b"), documents).step(step).inputs()
    before = {(documents, step): of(documents, step) for documents in ("", "mine") for step in ("data", "training", "evaluation")}
    table.write_text(table.read_text().replace("some/", "another/"))
    changed = {which for which, found in before.items() if of(*which) != found}
    assert {("mine", "evaluation"), ("", "data")} <= changed and not {("", "evaluation"), ("mine", "training")} & changed


def test_rows_decode_pages_alike_after_every_operation():
    content = FILES["RGB with a transparent colour"]
    record = {name: "x" for name in ROW_FEATURES} | {"answers": ["x"], "doc_types": [], "pages": [1], "page_count": 1, "evidence_pages": []}
    rows = rows_dataset([record | {"images": [{"bytes": content, "path": None}]}]*3)
    page, raw = array(decode_page(content)[0]), rows.cast_column("images", List(Image(decode=False)))
    for changed in (rows.select([1]), rows.select_columns(["images"]), concatenate_datasets([rows, rows]),
                    rows.remove_columns("doc_id"), rows.add_column("more", [1, 2, 3]), rows.shuffle(seed=0),
                    rows.filter(lambda row: True, input_columns="doc_id"),
                    raw.cast_column("images", ROW_FEATURES["images"]),
                    Dataset.from_list(raw.to_list()).cast_column("images", ROW_FEATURES["images"])):
        for found in (changed[0]["images"][0], changed[:1]["images"][0][0], next(iter(changed))["images"][0], changed["images"][0][0]):
            assert (array(found) == page).all()
