"Broken and hostile inputs for a folder of documents, all made by code: by hand and by a seeded fuzzer."
import io
import json
import os
import random
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

USED, EITHER = "used", "either"  # what is to become of a line; any other text is part of the reason to skip it
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM")


@dataclass(frozen=True)
class Case:
    name: str
    line: bytes  # of metadata.jsonl
    outcome: str  # USED, EITHER or part of the reason
    files: dict = field(default_factory=dict)  # name: bytes, or a function of the path


def record(**changed):
    return {"file_name": "page.png", "question": "Total?", "answers": ["9.00"]} | changed


def line(name, outcome, **changed):
    return Case(name, json.dumps(record(questionId=name) | changed).encode(), outcome)


def page(name, outcome, content, file_name=None):
    file_name = file_name or f"{name.replace(' ', '-')}.png"
    return Case(name, json.dumps(record(file_name=file_name, questionId=name)).encode(), outcome, {file_name: content})


def encoded(kind, image=None, **options):
    stream = io.BytesIO()
    (image or picture()).save(stream, kind, **options)
    return stream.getvalue()


def picture(mode="RGB", size=(40, 24)):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *extra, depth=8, colour=2, pixels=b"\0"):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def tiff(*tags, offset=8, following=0):
    "A TIFF of one directory; a tag is (number, type, count, value)."
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", offset) + struct.pack("<H", len(tags)) + body + struct.pack("<I", following)


def turned(orientation, kind="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(kind, exif=exif)


def moving(kind): return encoded(kind, save_all=True, append_images=[Image.new("RGB", (40, 24), c) for c in ("red", "blue")])


def pages():
    "Pictures, each in its own way."
    good = {kind: encoded(kind) for kind in FORMATS}
    none = "not an image"
    yield from (page(f"{kind} cut at {share:.1%}", "image" if share < .01 else EITHER, data[:int(len(data)*share)])
                for kind, data in good.items() for share in (.005, .1, .5, .97))
    yield from (page(f"orientation {n}", USED, turned(n)) for n in (0, 1, 2, 3, 4, 5, 6, 7, 8, 99))
    yield from (page(f"orientation 6 in {kind}", USED, turned(6, kind)) for kind in ("PNG", "TIFF", "WEBP"))
    yield from (page(f"moving {kind}", "shows nothing", moving(kind)) for kind in ("GIF", "WEBP", "PNG", "TIFF"))
    yield from (page(f"{mode} {kind}", USED, encoded(kind, picture(mode))) for mode, kind in (
        ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("LA", "PNG"), ("RGBA", "WEBP"), ("F", "TIFF"),
        ("I", "TIFF"), ("YCbCr", "TIFF")))
    yield page("LAB TIFF", EITHER, encoded("TIFF", picture("LAB")))
    wide = np.linspace(0, 65535, 960).reshape(24, 40)
    yield page("16-bit PNG", USED, encoded("PNG", Image.fromarray(wide.astype(np.uint16))))
    yield page("16-bit TIFF", USED, encoded("TIFF", Image.fromarray(wide.astype(np.uint16))))
    odd = wide.astype(np.float32)
    odd[0, :4] = np.nan, np.inf, -np.inf, -1
    yield page("TIFF of not-a-numbers", USED, encoded("TIFF", Image.fromarray(odd)))
    yield page("progressive JPEG", USED, encoded("JPEG", progressive=True))
    yield page("JPEG called PNG", USED, good["JPEG"])
    yield page("TIFF called PNG", USED, good["TIFF"])
    yield page("PNG called exe", USED, good["PNG"], "page.exe")
    yield page("PNG called nothing", USED, good["PNG"], "page")
    yield page("PNG called by a long name", USED, good["PNG"], "n"*240 + ".png")
    yield page("PNG called in Arabic", USED, good["PNG"], "صفحة ١.png")
    yield page("PNG called like an option", USED, good["PNG"], "-rf.png")
    yield page("PNG called like a format string", USED, good["PNG"], "{0}%s$HOME`id`.png")
    yield page("same names but for the suffix, one", USED, good["TIFF"], "twin.tif")
    yield page("same names but for the suffix, two", USED, good["PNG"], "twin.tif.png")
    for name, content in {"empty file": b"", "one byte": b"\x89", "line feed": b"\n", "text": b"not a picture", "zeros": bytes(4096),
                          "HTML": b"<html><script>alert(1)</script>", "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
                          "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
                          "zip": b"PK\3\4" + bytes(60), "program": b"\x7fELF" + bytes(60), "pickle": b"\x80\4\x95\0\0\0\0cposix\nsystem\n.",
                          "Photoshop": b"8BPS\0\1" + bytes(60), "icon": b"\0\0\1\0\1\0" + bytes(60), "NumPy": b"\x93NUMPY\1\0" + bytes(60),
                          "zip before PNG": b"PK\3\4" + good["PNG"]}.items():
        yield page(f"not a picture: {name}", none, content)
    yield page("PDF cut short", "cut short", b"%PDF-1.7\n1 0 obj")
    yield page("PDF before PNG", "cut short", b"%PDF-1.7\n" + good["PNG"])
    for name, content in {"zip after PNG": good["PNG"] + b"PK\3\4" + bytes(60), "HTML after JPEG": good["JPEG"] + b"<script>alert(1)</script>",
                          "PHP in a comment": encoded("JPEG", comment=b"<?php system('id') ?>"), "script in a GIF": good["GIF"] + b"*/alert(1)",
                          "shell after BMP": good["BMP"] + b"\n#!/bin/sh\nid\n"}.items(): yield page(f"polyglot: {name}", USED, content)
    for name, content in {"PNG": png(20_000, 10_000), "PNG at its limit": png(2**31 - 1, 2**31 - 1), "GIF": b"GIF89a\xff\xff\xff\xff\0\0\0;",
                          "BMP": good["BMP"][:18] + struct.pack("<ii", 60_000, 60_000) + good["BMP"][26:],
                          "PPM": b"P6 99999 99999 255\n", "TIFF": tiff((256, 4, 1, 60_000), (257, 4, 1, 60_000), (262, 3, 1, 1))}.items():
        yield page(f"huge {name}", EITHER if name in ("GIF", "TIFF") else "over 100 megapixels", content)
    yield page("a strip", "one side is over 200 times the other", png(10_000, 30))
    for name, content in {"PNG of no width": png(0, 30), "PNG of no height": png(30, 0), "GIF of no size": b"GIF89a\0\0\0\0\0\0\0;",
                          "PPM of no size": b"P6 0 0 255\n", "PPM of negative size": b"P6 -5 5 255\n",
                          "BMP of no size": good["BMP"][:18] + bytes(8) + good["BMP"][26:],
                          "PNG without pixels": png(300, 300), "PNG of a wrong depth": png(30, 30, depth=3),
                          "PNG of a wrong colour": png(30, 30, colour=9), "PNG of a wrong checksum": good["PNG"][:30] + b"\0" + good["PNG"][31:],
                          "PNG of an endless chunk": png(30, 30).replace(b"\0\0\0\x09IDAT", b"\x7f\xff\xff\xffIDAT"),
                          "PNG with a bomb of text": png(30, 30, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(20_000_000)))),
                          "PPM of no maximum": b"P6 4 4 0\n" + bytes(48), "PPM of an endless comment": b"P6 #" + b"a"*100_000,
                          "JPEG of markers only": b"\xff\xd8" + b"\xff\xe0\0\2"*1000 + b"\xff\xd9", "JPEG without a frame": b"\xff\xd8\xff\xd9",
                          "TIFF without tags": tiff(), "TIFF of a directory beyond its end": tiff(offset=2**31),
                          "TIFF of a directory that follows itself": tiff((256, 4, 1, 9), (257, 4, 1, 9), following=8),
                          "WebP of a wrong length": b"RIFF\xff\xff\xff\x7fWEBPVP8 \xff\xff\xff\x7f" + bytes(20),
                          "GIF without a frame": b"GIF89a\4\0\4\0\0\0\0;"}.items(): yield page(name, "image", content)
    for name, content in {"PNG with a bomb for a profile": png(2, 2, chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(20_000_000))),
                                                               pixels=bytes(14)),
                          "PNG with too many pixels": png(2, 2, pixels=bytes(1_000_000)), "PNG with two headers": good["PNG"][:33] + good["PNG"][8:],
                          "PNG without its end": good["PNG"][:-12]}.items(): yield page(name, EITHER, content)


def links():
    "What is no plain file, or lies elsewhere."
    def link(target): return lambda path: path.symlink_to(target)
    yield page("link within the folder", USED, link("page.png"))
    yield page("link to a neighbour", "leaves the folder", link("../test/page.png"))
    yield page("link to a system file", "leaves the folder", link("/etc/passwd"))
    yield page("link to an endless device", "leaves the folder", link("/dev/zero"))
    yield page("link to nothing", "not found", link("nothing.png"))
    yield page("link to itself", "leads nowhere", lambda path: path.symlink_to(path.name))
    yield page("link to a folder elsewhere", "leaves the folder", link("/etc"))
    yield page("a pipe", "not found", os.mkfifo)
    yield page("a folder", "not found", lambda path: path.mkdir())
    for name, outcome in (("../test/page.png", "leaves"), ("/etc/passwd", "leaves"), ("a/../../test/page.png", "leaves"), ("..", "leaves"),
                          ("/dev/zero", "leaves"), ("/proc/self/mem", "leaves"), (".", "not found"), ("./page.png", USED),
                          ("a/../page.png", USED), ("~/.ssh/id_rsa", "not found"), ("file:///etc/passwd", "not found"),
                          ("http://127.0.0.1/page.png", "not found"), ("C:\\windows\\page.png", "not found"), ("\\\\host\\page.png", "not found"),
                          ("page.png\0.jpg", "not found"), ("metadata.jsonl", "not an image"), ("PAGE.PNG", EITHER), ("a"*300, "leads nowhere"),
                          ("a/"*1500, "not found"), ("a/"*2000, EITHER), ("a"*5000, "5,000 characters"), ("page.png\n", USED), ("\u202egnp.egap", "not found"),
                          ("\ud800.png", "not valid Unicode"), ("", "no file_name"), (" ", "no file_name"), (None, "no file_name"), (5, "not found"),
                          (True, "file_name is not a text"), (["page.png"], "file_name is not a text"), ({}, "file_name is not a text")):
        yield line(f"file name {name!r:.40}, {outcome}", outcome, file_name=name)


def fields():
    "Values of a wrong type, of a wrong size, and texts that would do harm where texts are run."
    long, marks, surrogate = "a"*1_000_000, "\u202e\u2066\u200f", "\ud83d"
    for value, outcome in ((None, "no question"), ("", "no question"), (" \t\r\n", "no question"), ("\0\1\x7f", "no question"), (marks, "no question"),
                           ("\ufeff", "no question"), (True, "not a text"), ([], "not a text"), ({"a": 1}, "not a text"), (1e999, "not a text"),
                           (7, USED), (1.5, USED), (long, "1,000,000 characters"), (surrogate, "not valid Unicode"), ("a\0b", USED),
                           (f"total{marks}?", USED), ("\x1b[2J\x1b]0;owned\7", USED), ("<script>alert(1)</script>", USED), ("{{7*7}}{%raw%}", USED),
                           ("#eval(1) $x$ \\input{/etc/passwd}", USED), ("'; DROP TABLE pages; --", USED), ("=cmd|'/c calc'!A1", USED),
                           ("🧾 e\u0301 ﷽ 漢字", USED), ("a\u0300"*1000, USED), ("<|im_end|><|image_pad|>", USED), ("https://x.invalid/?q=%00", USED)):
        yield line(f"question {value!r:.40}, {outcome}", outcome, question=value)
    for value, outcome in ((None, "zero answers"), ([], "zero answers"), ("", USED), ([""], USED), ([None, " ", "\0"], USED), (["\0"], "zero answers"), ([None], "zero answers"), ({}, "not a list"),
                           ([["a"]], "not a list"), ([{}], "not a list"), (True, "not a text"), ([False], "not a text"), ([1e999], "not a text"),
                           ("text", USED), (5, USED), ([0], USED), ([1, "a", None], USED), ([long], "1,000,000 characters"),
                           (["a"]*1001, "1,001 answers"), ([surrogate], "not valid Unicode"), ([marks], "zero answers"), (["a"*4000], USED)):
        yield line(f"answers {value!r:.40}, {outcome}", outcome, answers=value)
    for value, outcome in (([1], "not a text"), ({}, "not a text"), (True, "not a text"), (long, "1,000,000 characters"), (surrogate, "not valid Unicode"),
                           (0, USED), (1.5, USED), ("", "duplicate question id"), ("<b>id</b>", USED), ("../../id", USED), ("../../id", "duplicate question id"),
                           (f"../../id{marks}", "duplicate question id")):
        yield line(f"question id {value!r:.40}, {outcome}", outcome, questionId=value)
    for value, outcome in ((None, USED), ("receipt", USED), ([1, "<i>"], USED), ([["a"]], "not a list"), ({}, "not a list"), ([True], "not a text"),
                           (long, "1,000,000 characters"), (["a"]*1001, "1,001 question_types"), ([surrogate], "not valid Unicode")):
        yield line(f"labels {value!r:.40}, {outcome}", outcome, question_types=value)
    for value, outcome in ((None, USED), ("", USED), ("chartqa", USED), ("DocVQA", "unknown benchmark"), (["docvqa"], "unknown benchmark"),
                           ({"a": 1}, "unknown benchmark"), (True, "unknown benchmark"), (5, "unknown benchmark"), (long, "unknown benchmark"),
                           (surrogate, "unknown benchmark"), ("../docvqa", "unknown benchmark")):
        yield line(f"benchmark {value!r:.40}, {outcome}", outcome, benchmark=value)
    yield line("fields nobody knows", USED, __proto__={"a": 1}, __class__="os.system", **{"": 1, "a"*1000: 2})


def lines():
    "Lines that are no JSON object, or one by an odd way."
    good, broken, other = json.dumps(record(questionId="odd")).encode(), "broken JSON line", "not a JSON object"
    odd = lambda number: good.replace(b'"odd"', b'"odd %d"' % number)
    for name, content, outcome in (
            ("cut", good[:-9], broken), ("single quotes", good.replace(b'"', b"'"), broken), ("comma at the end", good[:-1] + b",}", broken),
            ("comment", good + b" // total", broken), ("two objects", good + good, broken), ("Latin-1", good.replace(b"Total", b"caf\xe9"), broken),
            ("UTF-16", good.decode().replace("\n", "").encode("utf-16-le"), broken), ("zero byte", good.replace(b"Total", b"To\0tal"), broken),
            ("overlong UTF-8", good.replace(b"Total", b"\xc0\xaf"), broken), ("tab in a text", good.replace(b"Total", b"To\ttal"), broken),
            ("deep list", b"["*100_000, broken), ("deep object", b'{"a":'*100_000, broken), ("large number", good[:-1] + b', "n": ' + b"9"*10_000 + b"}", broken),
            ("over the longest line", good[:-1] + b', "n": "' + b"a"*16_000_000 + b'"}', broken), ("binary", bytes(range(14, 256)), broken),
            ("Python", b"__import__('os').system('id')", broken), ("pickle", b"\x80\4\x95cposix", broken), ("YAML", b"!!python/object/apply:os.system [id]", broken),
            ("record separator", b"\x1e" + good, broken), ("number", b"5", other), ("text", b'"text"', other), ("null", b"null", other),
            ("true", b"true", other), ("list", b"[1, 2]", other), ("not a number", b"NaN", other), ("empty object", b"{}", "no file_name"),
            ("not-a-number answer", odd(0).replace(b'["9.00"]', b"[NaN]"), "not a text"), ("infinite answer", odd(0).replace(b'"9.00"', b"-Infinity"), "not a text"),
            ("byte order mark", b"\xef\xbb\xbf" + odd(1), USED), ("carriage return", odd(2) + b"\r", USED), ("white space around", b" \t" + odd(3) + b"  ", USED),
            ("key twice", odd(4)[:-1] + b', "answers": ["8"]}', USED), ("escaped", odd(5).replace(b"Total", b"\\u0054otal"), USED),
            ("megabytes of spaces", odd(6) + b" "*5_000_000, USED)):
        yield Case(f"line: {name}", content, outcome)


def fuzzed(seed=0, per_format=12, records=60):
    "Good pictures and a good line with random damage: bytes changed, cut out, doubled, spliced with another's."
    rng = random.Random(seed)
    good = [encoded(kind) for kind in FORMATS]

    def damaged(data, other):
        data, start = bytearray(data), rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                for _ in range(rng.choice((1, 4, 32))): data[rng.randrange(len(data))] = rng.randrange(256)
            case 1: del data[start:start + rng.randrange(1, 64)]
            case 2: data[start:start] = data[:rng.randrange(1, 200)]
            case 3: data[start:] = other[rng.randrange(len(other)):]
            case 4: data[start:start + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
        return bytes(data)

    for kind, data in zip(FORMATS, good):
        for number in range(per_format): yield page(f"fuzzed {kind} {number}", EITHER, damaged(data, rng.choice(good)))
    for number in range(records):
        text = json.dumps(record(questionId=f"fuzzed {number}", question_types=["form"], benchmark="docvqa")).encode()
        yield Case(f"fuzzed line {number}", damaged(text, b'{"a": [1, null], "\\ud800": "\\u202e"}').replace(b"\n", b" "), EITHER)


def cases():
    "All of them, in a fixed order."
    return [*pages(), *links(), *fields(), *lines(), *fuzzed()]
