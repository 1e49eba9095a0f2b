"Bad input in a user's own documents: one clear error, or a counted and listed skip."
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from docvlm.apps.ask import Asker
from docvlm.core import open_study
from docvlm.inputs.folder import load_folder
from docvlm.analysis.metrics import score
from docvlm.inputs.sources import ROW_FEATURES, rows_dataset

REPO = Path(__file__).parents[1]
RECEIPTS = REPO.parent / "shared/real/receipts"


def png(width, height):
    "A PNG whose header claims a size, without the pixels."
    def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def line(number=0, **changed):
    return {"file_name": "page.png", "question": f"Question {number}?", "answers": ["9.00"]} | changed


def write(split, *lines):
    split.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((60, 40), 50).save(split / "page.png")
    (split / "metadata.jsonl").write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))


@pytest.fixture
def documents(tmp_path):
    for split in ("train", "test"): write(tmp_path / "mine" / split, line())
    return tmp_path / "mine"


def load(documents): return load_folder(documents, documents.parent / "pages")


def test_good_folder(documents):
    rows, skipped = load(documents)
    dataset = rows_dataset(rows["train"])
    assert dataset.features == ROW_FEATURES and not skipped
    assert dataset[0]["images"][0].size == (60, 40) and dataset[0]["benchmark"] == "docvqa"


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist.*train/ and test/"): load(tmp_path / "nowhere")


def test_missing_split(documents):
    (documents / "test").rename(documents / "validation")
    with pytest.raises(FileNotFoundError, match="mine/test is missing.*train/ and test/"): load(documents)


def test_missing_metadata(documents):
    (documents / "train/metadata.jsonl").rename(documents / "train/labels.csv")
    with pytest.raises(FileNotFoundError, match=r"train/metadata.jsonl is missing.*labels.csv.*file_name, question"):
        load(documents)


@pytest.mark.parametrize("column", ["file_name", "question", "answers"])
def test_missing_column(documents, column):
    record = line()
    record.pop(column)
    write(documents / "train", record)
    with pytest.raises(ValueError, match=rf"train/metadata.jsonl lacks the column\(s\) {column}; its first line has"):
        load(documents)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_split(documents, text):
    write(documents / "test", text)
    with pytest.raises(ValueError, match=r"No usable row in .*test/metadata.jsonl \(the file is empty\)"): load(documents)


def test_everything_skipped(documents):
    write(documents / "test", line(answers=[]), "{")
    with pytest.raises(ValueError, match=r"No usable row.*metadata.jsonl:2: broken JSON.*metadata.jsonl:1: zero answers"):
        load(documents)


BAD_LINES = {
    "zero answers": (line(1, answers=[]), "zero answers"),
    "null answers": (line(1, answers=None), "zero answers"),
    "no answers": (line(1, answers=[None]), "zero answers"),
    "nested answers": (line(1, answers=[["a"]]), "answers is not a list of texts"),
    "no question": (line(1, question=" "), "no question"),
    "no file name": (line(1, file_name=None), "no file_name"),
    "broken JSON": ('{"file_name": "page.png", "question', "broken JSON line"),
    "not an object": ("[1, 2]", "not a JSON object"),
    "file not found": (line(1, file_name="none.png"), "file 'none.png' not found"),
    "a folder": (line(1, file_name="."), "not found"),
    "parent folder": (line(1, file_name="../test/page.png"), "leaves the folder"),
    "absolute path": (line(1, file_name="/etc/hosts"), "leaves the folder"),
    "zero byte in the name": (line(1, file_name="a\0b"), "file 'a b' not found"),
    "unknown benchmark": (line(1, benchmark="textvqa"), "unknown benchmark 'textvqa'; known: docvqa"),
    "benchmark of a wrong type": (line(1, benchmark=["docvqa"]), "unknown benchmark"),
    "repeated question": (line(0), "duplicate question id 'train/page.png#Question 0?'"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line_is_a_listed_skip(documents, case):
    bad, reason = BAD_LINES[case]
    write(documents / "train", line(0), bad, line(2))
    rows, skipped = load(documents)
    assert [row["question"] for row in rows["train"]] == ["Question 0?", "Question 2?"]
    assert len(skipped) == 1 and skipped[0]["row"] == "train/metadata.jsonl:2" and reason in skipped[0]["reason"]


def test_line_that_is_not_utf8(documents):
    path = documents / "train/metadata.jsonl"
    path.write_bytes(path.read_bytes() + b'\n{"question": "caf\xe9"}')
    assert "broken JSON line" in load(documents)[1][0]["reason"]


def test_byte_order_mark_and_windows_line_ends(documents):
    path = documents / "train/metadata.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n\r\n")
    rows, skipped = load(documents)
    assert len(rows["train"]) == 1 and not skipped


def test_symlink_out_of_the_folder(documents, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "secret.png")
    (documents / "train/link.png").symlink_to(tmp_path / "secret.png")
    write(documents / "train", line(0), line(1, file_name="link.png"))
    rows, skipped = load(documents)
    reason = skipped[0]["reason"]
    assert len(rows["train"]) == 1 and "'link.png' leaves the folder train/: it is a link; replace it with a copy of the page" in reason


@pytest.mark.parametrize("name", ["../test/page.png", "/etc/hosts", "sub/../../test/page.png"])
def test_a_path_out_of_the_folder_says_where_the_page_belongs(documents, name):
    write(documents / "train", line(0), line(1, file_name=name))
    assert "put the page into train/ and give its path from there" in load(documents)[1][0]["reason"]


BAD_IMAGES = {
    "empty file": (b"", "not an image"),
    "text": (b"not a picture", "not an image (or one of 0 pixels)"),
    "PDF": (b"%PDF-1.7\n", "cut short; copy or export it again"),
    "0 pixels": (png(0, 30), "0 pixels"),
    "200 megapixels": (png(20_000, 10_000), "image over 100 megapixels (Image size (200000000 pixels)"),
    "120 megapixels": (png(12_000, 10_000), "image over 100 megapixels (12000×10000 pixels): scale it down"),
    "a strip": (png(10_000, 30), "10000×30 pixels: one side is over 200 times the other"),
    "no pixels behind the header": (png(300, 300), "unreadable image"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_image_is_a_listed_skip(documents, case):
    content, reason = BAD_IMAGES[case]
    write(documents / "train", line(0), line(1, file_name="bad.png"), line(2, file_name="bad.png"))
    (documents / "train/bad.png").write_bytes(content)
    rows, skipped = load(documents)
    assert len(rows["train"]) == 1 and len(skipped) == 2
    assert all(skip["reason"].startswith("bad.png: ") and reason in skip["reason"] for skip in skipped), skipped


def test_every_truncation_of_a_jpeg_is_a_skip(documents):
    path = documents / "train/cut.jpg"
    Image.effect_noise((60, 40), 50).save(path)
    content = path.read_bytes()
    write(documents / "train", line(0), line(1, file_name="cut.jpg"))
    for length in (1, 10, 100, 300, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:length])
        rows, skipped = load(documents)
        assert len(rows["train"]) == 1 and len(skipped) == 1, length


@pytest.mark.parametrize("mode, suffix", [("1", "png"), ("L", "jpg"), ("P", "gif"), ("LA", "png"), ("RGBA", "png"),
                                          ("CMYK", "jpg"), ("I;16", "png"), ("F", "tif"), ("YCbCr", "jpg")])
def test_every_mode_becomes_rgb(documents, mode, suffix):
    page = Image.new("L", (64, 32), 255)
    page.paste(0, (10, 10, 20, 20))
    page.convert("RGB" if mode in ("CMYK", "YCbCr") else "L").convert(mode).save(documents / f"train/other.{suffix}")
    write(documents / "train", line(0, file_name=f"other.{suffix}"))
    image = rows_dataset(load(documents)[0]["train"])[0]["images"][0]
    assert image.mode == "RGB" and image.size == (64, 32)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_rotation_is_honoured(documents, suffix):
    image = Image.new("RGB", (64, 32), "white")
    image.paste("black", (0, 0, 32, 32))
    image.getexif()[0x0112] = 6  # turn a quarter to the right to view
    image.save(documents / f"train/turned.{suffix}", exif=image.getexif())
    write(documents / "train", line(0, file_name=f"turned.{suffix}"))
    turned = rows_dataset(load(documents)[0]["train"])[0]["images"][0]
    assert turned.size == (32, 64) and turned.getpixel((16, 8))[0] < 60 and turned.getpixel((16, 56))[0] > 200


def test_animation_with_an_empty_frame_is_a_listed_skip(documents):
    frames = [Image.new("RGB", (30, 30), colour) for colour in ("white", "black")]
    frames[0].save(documents / "train/moving.gif", save_all=True, append_images=frames[1:])
    write(documents / "train", line(0), line(1, file_name="moving.gif"))
    rows, skipped = load(documents)
    assert len(rows["train"]) == 1 and "moving.gif: shows nothing" in skipped[0]["reason"]


def test_later_damage_to_the_folder_does_no_harm(documents):
    rows, _ = load(documents)
    (documents / "train/page.png").unlink()
    assert rows_dataset(rows["train"])[0]["images"][0].size == (60, 40)


def test_unknown_benchmark_and_no_answers_are_never_scored():
    with pytest.raises(ValueError, match="Unknown benchmark 'textvqa': use one of docvqa, infovqa, chartqa"):
        score("textvqa", "a", ["a"])
    with pytest.raises(ValueError, match="No target answers"): score("docvqa", "a", [])


@pytest.mark.skipif(not RECEIPTS.is_dir(), reason=f"no real receipts at {RECEIPTS}")
def test_real_receipts(tmp_path):
    rows, skipped = load_folder(RECEIPTS, tmp_path)
    assert not skipped and {name: len(split) for name, split in rows.items()} == {"train": 160, "test": 80}
    test = rows_dataset(rows["test"])
    assert len(set(test["doc_id"])) == 20 and test["doc_types"][0] == ["receipt"]
    assert test[0]["images"][0].mode == "RGB" and max(test[0]["images"][0].size) <= 1400


def test_odd_pages_get_an_answer():
    "An empty page, a black one, one far too large and a script the base does not know: an answer with a confidence, never a crash."
    asker, ink = Asker(open_study("smoke")), Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(ink).text((20, 60), "\u65e5\u672c\u8a9e \u0420\u0443\u0441", "black", ImageFont.load_default(28))
    pages = [Image.new("RGB", (280, 200), "white"), Image.new("RGB", (280, 200)), ink, Image.new("L", (3, 400), 200).convert("RGB")]
    for page in pages:
        for said in asker.ask([page], ["What is the total?", "\u603b\u91d1\u989d?"]): assert isinstance(said["answer"], str) and 0 <= said["confidence"] <= 1
    with pytest.warns(UserWarning, match="made smaller"): said = asker.ask([Image.new("RGB", (3000, 2000), "white")], ["Date?"])
    assert 0 <= said[0]["confidence"] <= 1


def test_a_script_without_a_main_guard_is_told_so_and_does_not_wait_for_itself(tmp_path):
    (tmp_path/"script.py").write_text("""from dataclasses import replace
from docvlm.core import open_study
from docvlm.data import prepared_folder
study = open_study("smoke")
prepared_folder(replace(study, preset=replace(study.preset, train_pages={"forms": 100}, test_pages={"forms": 2})))
""")
    done = subprocess.run([sys.executable, tmp_path/"script.py"], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode and 'under `if __name__ == "__main__":`' in done.stderr
