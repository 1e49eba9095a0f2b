"Charts of every style: exact words and marks, readable values, equal pixels in every process."
import random
import subprocess
import sys
from functools import lru_cache

import matplotlib
import numpy as np
import pytest

from docvlm.pages.chart_data import Chart, make_chart
from docvlm.pages.charts import CHART_STYLES, draw_chart
from docvlm.pages.entities import Cast, plain_number
from docvlm.pages.questions import chart_questions
from docvlm.pages.rendering import FONTS, SEEN_FONTS, UNSEEN_FONTS, DoesNotFit, within

STYLES = [(kind, style) for kind, styles in CHART_STYLES.items() for style in styles["seen"] + styles["unseen"]]


@lru_cache
def drawn_charts(kind, style, count, split="train"):
    "Random charts that fit, one and two series."
    unseen, seed, found = style in CHART_STYLES[kind]["unseen"], 0, []
    while len(found) < count:
        seed += 1
        cast = Cast(seed, split)
        chart = make_chart(cast, kind, kind != "pie" and seed % 2 == 0)
        try: found.append((chart, draw_chart(chart, style, cast.rng.choice(list(UNSEEN_FONTS if unseen else SEEN_FONTS)),
                                             cast.rng)))
        except DoesNotFit: pass
        assert seed < 40*count, "almost no chart fits this style"
    return found


def printed(drawn, key): return " ".join(word for word, box in drawn.words if within(box, drawn.marks[key]))


@pytest.mark.parametrize("kind,style", STYLES)
def test_marks_hold_what_they_name(kind, style):
    for chart, drawn in drawn_charts(kind, style, 6):
        assert printed(drawn, ("title",)) == chart.title
        assert printed(drawn, ("unit",)).removeprefix("in ") == chart.unit
        for j, category in enumerate(chart.categories): assert printed(drawn, ("category", j)) == category
        for i, (name, values) in enumerate(chart.series.items()):
            if len(chart.series) > 1: assert printed(drawn, ("series", i)) == name
            for j, value in enumerate(values):
                if chart.labelled: assert printed(drawn, ("value", i, j)) == plain_number(value)
                else: assert ("value", i, j) not in drawn.marks
        ticks = [float(word) for word, _ in drawn.words if word.replace(".", "").isdigit()]
        if not chart.labelled: assert max(ticks) >= max(map(max, chart.series.values())) and 0 in ticks


@pytest.mark.parametrize("kind,style", STYLES)
def test_words_lie_in_the_image_on_ink_and_apart(kind, style):
    for _, drawn in drawn_charts(kind, style, 6):
        pixels = np.asarray(drawn.image, int)
        width, height = drawn.image.size
        assert drawn.image.mode == "RGB" and width % 28 == height % 28 == 0 and width*height/784 <= 320
        for n, (word, (x0, y0, x1, y1)) in enumerate(drawn.words):
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height, word
            area = pixels[round(y0):round(y1), round(x0):round(x1)]
            assert np.ptp(area.sum(2)) > 60, f"{word} has no ink in its box"
            for other, (u0, v0, u1, v1) in drawn.words[:n]:
                assert min(x1, u1) - max(x0, u0) < 1 or min(y1, v1) - max(y0, v0) < 1, (word, other)


@pytest.mark.parametrize("kind", CHART_STYLES)
def test_evidence_of_a_question_is_its_answer(kind):
    asked = 0
    for style in CHART_STYLES[kind]["seen"] + CHART_STYLES[kind]["unseen"]:
        for chart, drawn in drawn_charts(kind, style, 2, "test"):
            for question in chart_questions(Cast(1, "test"), chart):
                if question.where is None: continue
                assert printed(drawn, question.where) == question.answers[0]
                asked += 1
    assert asked > 30


def test_an_equal_number_on_the_axis_is_not_the_evidence():
    "The value 20 and the tick 20: the evidence is the value's label."
    chart = Chart("bar", "Jobs", "millions", ["Trade", "Mining", "Health"], {"2010": [50.0, 20.0, 80.0]}, True)
    drawn = draw_chart(chart, "whitegrid", "Lato", random.Random(3))
    assert sum(word == "20" for word, _ in drawn.words) == 2, "a value and a tick"
    (question,) = [q for q in chart_questions(Cast(1, "train"), chart) if q.answers[0] == "20" and q.kind == "lookup"]
    box, name = drawn.marks[question.where], drawn.marks["category", 1]
    assert abs((box[0] + box[2]) - (name[0] + name[2])) < 4, "the label stands above its category"


PIXELS = """
import random, sys, zlib
from docvlm.pages.chart_data import make_chart
from docvlm.pages.charts import CHART_STYLES, draw_chart
from docvlm.pages.entities import Cast
kinds = list(CHART_STYLES)[::int(sys.argv[1])]  # in another order, other charts come before
digests = {}
for kind in kinds:
    for style in sum(CHART_STYLES[kind].values(), ())[::int(sys.argv[1])]:
        chart = make_chart(Cast(8, "train"), kind)
        try: drawn = draw_chart(chart, style, "Space Mono", random.Random(3))
        except ValueError: continue
        digests[kind, style] = zlib.crc32(drawn.image.tobytes()), drawn.words, drawn.marks
print(sorted(digests.items()))
"""


def test_equal_pixels_in_two_processes():
    one, other = (subprocess.run([sys.executable, "-c", PIXELS, order], capture_output=True, text=True, check=True).stdout
                  for order in ("1", "-1"))
    assert one == other and len(one) > 1000


def test_a_users_matplotlib_settings_change_nothing():
    chart = make_chart(Cast(8, "train"), "line")
    before = draw_chart(chart, "ggplot", "Roboto", random.Random(3))
    with matplotlib.rc_context({"text.hinting": "none", "lines.linewidth": 9, "figure.dpi": 33, "font.size": 4}):
        assert draw_chart(chart, "ggplot", "Roboto", random.Random(3)) == before


def test_styles_of_unseen_pages_are_never_seen():
    for styles in CHART_STYLES.values(): assert len(styles["unseen"]) >= 2 and len(styles["seen"]) >= 4
    seen, unseen = ({style for styles in CHART_STYLES.values() for style in styles[side]} for side in ("seen", "unseen"))
    assert not seen & unseen


def test_text_that_fits_no_size_is_refused():
    names = ["Extraordinarily", "Unreasonably-long", "Incomprehensible", "Overcrowded-name", "Uncontainable", "Abundance"]
    chart = Chart("bar", "Names", "models", names, {"1970": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}, True)
    for seed in range(20):
        try: drawn = draw_chart(chart, "excel", "DejaVu Sans", random.Random(seed))
        except DoesNotFit: continue
        assert drawn.text_height_px < 16
    with pytest.raises(DoesNotFit): draw_chart(
        Chart("pie", "A title that is much too long for any figure of this size, whatever its text", "days", names[:3],
              {"x": [1.0, 2.0, 3.0]}, True), "legend", "DejaVu Sans", random.Random(1))


def test_an_unknown_style_is_named():
    chart = make_chart(Cast(8, "train"), "pie")
    with pytest.raises(ValueError, match="Unknown style 'pew_pew' of pie charts; known: legend"):
        draw_chart(chart, "pew_pew", "Lato", random.Random(1))


def test_small_text_is_a_fixed_hard_share_and_every_font_draws():
    sizes, tokens = [], []
    for seed in range(120):
        cast = Cast(seed, "train")
        chart = make_chart(cast, "bar")
        try: drawn = draw_chart(chart, "pew", list(FONTS)[seed % len(FONTS)], cast.rng)
        except DoesNotFit: continue
        sizes.append(drawn.text_height_px)
        tokens.append(drawn.image.width*drawn.image.height/784)
    assert len(sizes) > 100 and 0.05 < sum(size < 16 for size in sizes)/len(sizes) < 0.3
    assert min(sizes) >= 11 and max(sizes) <= 28 and 150 < sum(tokens)/len(tokens) < 230
