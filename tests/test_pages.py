"One page for every door, whatever its file; and a folder's digest that changes with what is read of it, and with nothing else."
import base64
import io
import json
import os
import random
import re
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from datasets import Dataset, Image, concatenate_datasets
from PIL import Image as PILImage
from PIL import TiffImagePlugin

from docvlm import ocr
from docvlm.asking import read_upload
from docvlm.core import Preset, Study, base_digest, copies_digest, documents_digest, get_preset, open_study
from docvlm.endpoint import page_url
from docvlm.folder import load_folder
from docvlm.images import decode_page, open_page, page_size
from docvlm.model import load_processor, prepare_images
from docvlm.sources import ROW_FEATURES, rows_dataset


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


def tiff(samples, bits=16, photometric=1, sample_format=None, extra=()):
    "An uncompressed TIFF of one sample a pixel, written by hand: `samples` is its bytes or an array."
    height, width = samples.shape if isinstance(samples, np.ndarray) else (32, 48)
    data = samples.tobytes() if isinstance(samples, np.ndarray) else samples
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 0), (277, 3, 1), (278, 4, height),
            (279, 4, len(data)), *([(339, 3, sample_format)] if sample_format else []), *extra]
    tags = sorted(tags)
    start = 8 + 2 + 12*len(tags) + 4
    lines = b"".join(struct.pack("<HHI", tag, kind, 1) + struct.pack("<I" if kind == 4 else "<HH", *([start if tag == 273 else value] + [0]*(kind == 3)))
                     for tag, kind, value in tags)
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

def drawn_files():
    "Files of every mode, format and orientation that a page may come in; drawn by a seed."
    rng = random.Random(0)
    found = {}
    for kind, modes in {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK", "YCbCr"), "GIF": ("1", "L", "P"),
                        "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"), "WEBP": ("RGB", "RGBA"),
                        "BMP": ("1", "L", "P", "RGB"), "PPM": ("1", "L", "RGB", "I;16")}.items():
        for mode in modes:
            for orientation in (1, rng.randrange(2, 9)):
                size, seed = (rng.randrange(40, 70), rng.randrange(30, 60)), rng.randrange(1000)
                page = drawn("RGB", size, seed)
                if mode == "I;16": page = PILImage.fromarray(np.asarray(page.convert("L")).astype(np.uint16)*257)
                elif mode in ("LA", "RGBA"):
                    alpha = PILImage.effect_noise(size, 90).convert("L")
                    page = page.convert(mode[:-1])
                    page.putalpha(alpha)
                else: page = (page if mode in ("P", "RGB", "CMYK", "YCbCr") else page.convert("L")).convert(mode)
                exif = PILImage.Exif()
                exif[0x0112] = orientation
                turned = orientation > 1 and kind in ("PNG", "JPEG", "TIFF", "WEBP")
                if orientation > 1 and not turned: continue
                options = {"exif": exif} if turned else {}
                if kind == "WEBP": options["lossless"] = True
                found[f"{mode} {kind} {orientation}"] = encoded(page, kind, **options)
    black = drawn("RGB").point(lambda value: value//4)  # dark, on a transparent black
    for name, page, clear in (("RGB", black, (0, 0, 0)), ("RGB of white", drawn("RGB"), (255, 255, 255)), ("L", black.convert("L"), 0),
                              ("1", drawn("1"), 255), ("P", drawn("P"), 0)):
        found[f"{name} with a transparent colour"] = encoded(page, "PNG", transparency=clear)
    found["P with an alpha for every colour"] = encoded(drawn("P"), "PNG", transparency=bytes(range(256)))
    found["P GIF with a transparent colour"] = encoded(drawn("P"), "GIF", transparency=0)
    found["16-bit grey with a transparent sample"] = with_chunk(encoded(PILImage.fromarray(grey(65535))), b"tRNS", struct.pack(">H", 0))
    found["EXIF behind the pixels"] = encoded(drawn())[:-12] + chunk(b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0") + encoded(drawn())[-12:]
    for name, levels in (("10", 1023), ("12", 4095)): found[f"{name} bits in 16"] = encoded(PILImage.fromarray(grey(levels)))
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
    stored = dict(zip(FILES, rows_dataset(rows["train"]).cast_column("image", Image(decode=False))))
    record = {name: "x" for name in ROW_FEATURES} | {"answers": ["x"], "doc_types": []}
    hub_rows = rows_dataset([record | {"image": {"bytes": content, "path": None}} for content in FILES.values()])
    hub = dict(zip(FILES, concatenate_datasets([hub_rows, hub_rows]).select(range(len(FILES)))))
    raw = dict(zip(FILES, hub_rows.cast_column("image", Image(decode=False))))
    seen = lambda url: array(PILImage.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))
    return {"ask": {name: array(read_upload(content)) for name, content in FILES.items()},
            "study": {name: array(study[name]["image"]) for name in FILES}, "hub": {name: array(hub[name]["image"]) for name in FILES},
            "file of the study": {name: array(PILImage.open(stored[name]["image"]["path"]).convert("RGB")) for name in FILES},
            "endpoint": {name: seen(page_url(stored[name]["image"])) for name in FILES},
            "endpoint, hub": {name: seen(page_url(raw[name]["image"])) for name in FILES}}


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
        header = struct.pack(">IIBBBBB", 8, 2, depth, 0, 0, 0, 0)
        samples = [top, 0, top, 0, top, 0, 0, 0]
        packed = int("".join(f"{sample:0{depth}b}" for sample in samples), 2).to_bytes(depth, "big")
        for clear in (0, top):
            content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(">H", clear)) + chunk(
                b"IDAT", zlib.compress((b"\0" + packed)*2)) + chunk(b"IEND", b"")
            found = array(decode_page(content)[0])[0, :, 0].tolist()
            assert found == [255 if sample == clear else 255*sample//top for sample in samples], (depth, clear)
    deep = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)) + chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0, 0)) + chunk(
        b"IDAT", zlib.compress(b"\0" + struct.pack(">6H", 0x1234, 0, 0, 0x8000, 0x9000, 0xa000))) + chunk(b"IEND", b"")
    assert array(decode_page(deep)[0])[0].tolist() == [[255, 255, 255], [128, 144, 160]]


def test_a_drawn_page_is_kept_as_it_is(tmp_path):
    content = encoded(drawn("RGB"))
    rows, _ = load_folder(folder_of(tmp_path/"mine", {"page.png": content, "photo.jpg": encoded(drawn("RGB"), "JPEG")}), tmp_path/"pages")
    kept = [open(row["image"], "rb").read() for row in rows["train"]]
    assert kept == [content, encoded(drawn("RGB"), "JPEG")]


# --- which number is white

SAMPLES = {
    **{f"{bits} bits in 16, {kind}": encoded(PILImage.fromarray(grey(2**bits - 1)), kind) for bits in (4, 8, 10, 12, 14, 16) for kind in ("PNG", "TIFF")},
    **{f"{bits} bits in 16, 0 is white": tiff(2**bits - 1 - grey(2**bits - 1), photometric=0) for bits in (10, 12, 14, 16)},
    **{f"floats to {top}": encoded(PILImage.fromarray(grey(top, np.float32)), "TIFF") for top in (1, 255, 1023, 4095, 65535, 1e6)},
    **{f"floats to {top}, 0 is white": tiff(top - grey(top, np.float32), 32, 0, 3) for top in (1, 255, 65535)},
    "floats that overshoot": encoded(PILImage.fromarray(grey(1.2, np.float32) - np.float32(.05)), "TIFF"),
    "floats below 0": encoded(PILImage.fromarray(grey(2, np.float32) - 1), "TIFF"),
    "signed 16 bits": tiff(grey(65535).astype(np.int32).__sub__(32768).astype(np.int16), sample_format=2),
    "signed 16 bits, none below 0": tiff(grey(4095).astype(np.int16), sample_format=2),
    "signed 8 bits": tiff((grey(255).astype(np.int32) - 128).astype(np.int8), 8, sample_format=2),
    "unsigned 32 bits": tiff(grey(2**32 - 1, np.uint32), 32, sample_format=1), "12 bits in unsigned 32": tiff(grey(4095, np.uint32), 32, sample_format=1),
    "signed 32 bits": tiff(grey(2**31 - 1, np.int32), 32, sample_format=2), "0 and 1 in 16 bits": encoded(PILImage.fromarray(grey(1))),
    "largest sample stated": tiff(grey(3000) + 100, extra=((280, 3, 100), (281, 3, 3100))),
    "largest sample stated, wrongly": tiff(grey(4095), extra=((281, 3, 255),)), "largest sample stated, as the format's": tiff(grey(4095), extra=((281, 3, 65535),)),
    "a map of 1,023": b"P5 48 32 1023\n" + grey(1023).astype(">u2").tobytes(), "a map of 65,535": b"P5 48 32 65535\n" + grey(4095).astype(">u2").tobytes(),
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


@pytest.mark.parametrize("content", [
    encoded(PILImage.new(mode, (40, 30), colour), kind) for mode, colour, kind in (
        ("L", 0, "PNG"), ("L", 255, "PNG"), ("RGB", "red", "JPEG"), ("1", 0, "PNG"), ("P", 3, "GIF"), ("RGBA", (9, 9, 9, 0), "PNG"), ("I;16", 900, "PNG"))
    ] + [encoded(PILImage.fromarray(np.full((9, 9), value, np.float32)), "TIFF") for value in (0, 1, np.nan)] + [
    encoded(drawn("L").point(lambda value: value > 100))], ids=str)
def test_a_page_that_shows_nothing_is_refused(content, tmp_path):
    with pytest.raises(ValueError, match="shows nothing: every pixel has the same colour"): read_upload(content)
    rows, skipped = load_folder(folder_of(tmp_path/"mine", {"page.png": encoded(drawn()), "blank": content}), tmp_path/"pages")
    assert len(rows["train"]) == 1 and "shows nothing" in skipped[0]["reason"]


def test_few_bits_of_colour_in_sixteen_are_refused():
    samples = np.repeat(grey(4095)[..., None], 3, -1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    deep = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 48, 32, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="save it with 8 bits a colour"): open_page(deep)
    with pytest.raises(ValueError, match="save it with 8 bits a colour"): open_page(b"P6 48 32 65535\n" + samples.astype(">u2").tobytes())
    assert array(open_page(b"P6 48 32 4095\n" + samples.astype(">u2").tobytes())[0]).max() == 255


# --- several pages in a file

def frames(kind, count, **options): return encoded(drawn("RGB"), kind, save_all=True, append_images=[drawn("RGB", seed=n) for n in range(1, count)], **options)


@pytest.mark.parametrize("kind, count", [("TIFF", 2), ("TIFF", 3), ("GIF", 2), ("WEBP", 3), ("PNG", 2)])
def test_a_file_of_several_pages_is_refused(kind, count, tmp_path):
    with pytest.raises(ValueError, match=f"holds {count} pages; save each page as a file of its own"): read_upload(frames(kind, count))
    rows, skipped = load_folder(folder_of(tmp_path/"mine", {"page.png": encoded(drawn()), "scan": frames(kind, count)}), tmp_path/"pages")
    assert len(rows["train"]) == 1 and f"scan: holds {count} pages" in skipped[0]["reason"]


@pytest.mark.parametrize("content", [b"P5 48 32 255\n" + bytes(range(256))*6, b"P4 48 32\n" + bytes(range(192)), encoded(drawn("RGB"), "PPM"),
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
            drawn("1" if kind == 4 else "RGB", (24, 16) if kind == 1 else (48, 32), number).save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
    return stream.getvalue()


def test_smaller_copies_and_masks_are_no_pages():
    for kinds, page in (((0, 1), 0), ((0, 1, 1, 4), 0), ((1, 0), 1), ((2, 4), 0), ((None, 1), 0), ((1,), 0)):
        assert (array(open_page(tiff_frames(*kinds))[0]) == array(drawn("RGB", (24, 16) if kinds == (1,) else (48, 32), page))).all(), kinds
    for kinds in ((0, 0, 1), (2, 2), (None, None, 4)):
        with pytest.raises(ValueError, match="holds 2 pages"): open_page(tiff_frames(*kinds))


def test_what_phones_add_to_a_picture_is_no_page(tmp_path):
    content = frames("MPO", 2)
    page, suffix = open_page(content)
    assert suffix == ".jpeg" and (array(page) == array(PILImage.open(io.BytesIO(content)).convert("RGB"))).all()
    rows, skipped = load_folder(folder_of(tmp_path/"mine", {"photo.jpg": content}), tmp_path/"pages")
    assert not skipped and (array(rows_dataset(rows["train"])[0]["image"]) == array(page)).all()


# --- what a folder's digest covers

@pytest.fixture
def mine(tmp_path): return folder_of(tmp_path/"mine", {"page.png": encoded(drawn()), "second.png": encoded(drawn(seed=2))})


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
    seen = {before}
    for change in (lambda: (mine/"train"/"page.png").write_bytes(encoded(drawn(seed=3))), lambda: (mine/"train"/"second.png").unlink(),
                   lambda: (mine/"test"/"metadata.jsonl").open("a").write("\n{}"), lambda: (mine/"train"/"second.png").symlink_to("page.png"),
                   lambda: ((mine/"train"/"second.png").unlink(), (mine/"train"/"second.png").symlink_to("/etc/hosts")),
                   lambda: (mine/"test"/"metadata.jsonl").unlink(), lambda: (mine/"train").rename(mine/"old")):
        change()
        assert documents_digest(mine) not in seen
        seen.add(documents_digest(mine))


@pytest.mark.parametrize("linked", ["train", "test", "train/metadata.jsonl", "train/page.png", "."])
def test_what_lies_behind_a_link_is_digested(mine, tmp_path, linked):
    store = tmp_path/"store"
    target = mine/linked if linked != "." else mine
    target.rename(store)
    target.symlink_to(store)
    file = {"train/metadata.jsonl": store, "train/page.png": store, ".": store/"train"/"page.png"}.get(linked, store/"page.png")
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
    lambda path: None, lambda path: path.symlink_to(path), lambda path: path.symlink_to("/dev/zero"), os.mkfifo, lambda path: path.symlink_to("/dev"),
    lambda path: path.mkdir(), lambda path: path.symlink_to("."), lambda path: path.write_bytes(b"\xff\0[")],
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


def test_the_reader_opens_what_the_digest_covers(mine, tmp_path, monkeypatch):
    "Every file below the folder that is opened while it is read, by whatever means."
    import sys

    from docvlm.metadata import files_read
    (mine/"train"/"notes.txt").write_text("call back")
    with (mine/"train"/"metadata.jsonl").open("a") as lines:
        for name in ("none.png", "notes.txt", "../test/page.png"): lines.write("\n" + json.dumps({"file_name": name, "question": "Who?", "answers": ["A"]}))
        lines.write("\n" + json.dumps({"file_name": "second.png", "question": "", "answers": []}))
    opened, watching = set(), [True]
    sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" and watching and str(args[0]).startswith(str(mine)) else None)
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


def test_two_names_that_differ_in_spelling_only_are_two_pages(mine, tmp_path):
    for seed, name in enumerate((NFC, NFD)): (mine/"train"/name).write_bytes(encoded(drawn(seed=seed)))
    third = unicodedata.normalize("NFD", NFC[:-6]) + NFC[-6:]  # spelt half and half
    lines = [{"file_name": name, "question": "Total?", "answers": ["9.00"]} for name in (NFC, NFD, third)]
    (mine/"train"/"metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows, skipped = load_folder(mine, tmp_path/"pages")
    assert [row["doc_id"] for row in rows["train"]] == [f"train/{NFC}", f"train/{NFD}"] and "not found" in skipped[0]["reason"]
    assert (array(rows_dataset(rows["train"])[1]["image"]) == array(open_page(mine/"train"/NFD)[0])).all()


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
    for name in ("config.json", "merges.txt", "pytorch_model.bin", "chat_template.jinja", "additional_chat_templates/tool.jinja"):
        (tmp_path/name).write_text("changed")
        assert base_digest(preset) not in seen
        seen.add(base_digest(preset))


def test_copies_of_data_sets_are_inputs_of_the_data_step(tmp_path, monkeypatch):
    from docvlm import core, steps
    (tmp_path/"data").mkdir()
    (tmp_path/"copy"/"data").mkdir(parents=True)
    parquet = tmp_path/"copy"/"data"/"train-0.parquet"
    parquet.write_bytes(b"one")
    (tmp_path/"data"/"sources.csv").write_text("name,split,hub_id,files\na,train,copy,data/*.parquet\nb,test,no/copy,*.parquet\n")
    monkeypatch.setattr(core, "root", lambda: tmp_path)
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


def test_rows_decode_pages_alike_after_every_operation():
    content = FILES["RGB with a transparent colour"]
    record = {name: "x" for name in ROW_FEATURES} | {"answers": ["x"], "doc_types": [], "image": {"bytes": content, "path": None}}
    rows = rows_dataset([record]*3)
    page = array(decode_page(content)[0])
    for changed in (rows.select([1]), rows.select_columns(["image"]), concatenate_datasets([rows, rows]), rows.remove_columns("doc_id"),
                    rows.add_column("more", [1, 2, 3]), rows.filter(lambda row: True, input_columns="doc_id"), rows.shuffle(seed=0),
                    Dataset.from_list(rows.cast_column("image", Image(decode=False)).to_list()).cast_column("image", ROW_FEATURES["image"])):
        assert (array(changed[0]["image"]) == page).all() and (array(changed[:1]["image"][0]) == page).all()
        assert (array(next(iter(changed))["image"]) == page).all() and (array(changed["image"][0]) == page).all()
