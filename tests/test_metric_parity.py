"Our metrics against independent ones on 10,000 random pairs: they agree, or differ for a reason that is named and counted."
import random
import re
from fractions import Fraction

import pytest
from anls import anls_score
from anls_star import anls_score as anls_star_score

from docvlm.analysis.metrics import anls, relaxed_accuracy, relaxed_accuracy_strict

PAIRS = 10_000
LETTERS = "abcdeABCDE 12.,$%éß漢"


def texts(rng):
    "A prediction and one to three targets; half the predictions are a target with a few characters changed."
    draw = lambda: "".join(rng.choices(LETTERS, k=rng.randrange(13)))
    targets = [draw() for _ in range(rng.randint(1, 3))]
    if rng.random() < .5: return draw(), targets
    characters = list(rng.choice(targets))
    for _ in range(rng.randrange(5)):
        place = rng.randint(0, len(characters))
        characters[place:place + rng.randint(0, 1)] = rng.choices(LETTERS + "\t\n", k=rng.randint(0, 2))
    return "".join(characters), targets


def numbers(rng):
    "A prediction and a target as charts have them: near, far, per cent, with separators, years, words."
    value = rng.choice((0, rng.randint(0, 20), rng.randint(1900, 2030), rng.randint(1, 10**6), round(rng.uniform(-100, 100), rng.randint(0, 3))))
    near = value*rng.choice((1, 1, 1.05, .95, 1.0499, 1.06, -1, 100, .01)) + rng.choice((0, 0, 1))
    def shown(number):
        text = rng.choice(("{}", "{:.0f}", "{:.1f}", "{:.2f}", "{:,.0f}", "${}", "{}%", " {} ", "{}.", "{:e}", "Yes")).format(number)
        return text.upper() if rng.random() < .5 else text
    return shown(near), shown(value)


def test_anls_is_that_of_anls_star():
    rng = random.Random(0)
    for prediction, targets in (texts(rng) for _ in range(PAIRS)):
        assert anls(prediction, targets) == pytest.approx(anls_star_score(tuple(targets), prediction), abs=1e-12), (prediction, targets)


def test_anls_is_that_of_the_paper_but_for_two_named_differences():
    "`anls` follows the paper: a distance of one half scores 0 (ours, as the harnesses: 0.5); it measures lengths in capitals, so ß counts twice."
    rng, half, longer = random.Random(0), 0, 0
    for prediction, targets in (texts(rng) for _ in range(PAIRS)):
        ours, theirs = anls(prediction, targets), anls_score(prediction, targets)
        if abs(ours - theirs) < 1e-12: continue
        if any(len(text.upper()) != len(text) for text in (prediction, *targets)): longer += 1
        else:
            assert (ours, theirs) == (.5, 0), (prediction, targets)
            half += 1
    assert 0 < half < PAIRS/10 and 0 < longer < PAIRS/5, (half, longer)


def fraction(text, pattern):
    "The exact value of a decimal number, a hundredth of it before a per cent sign; None for any other text."
    match = re.fullmatch(pattern, text)
    return match and Fraction(match[1].replace(",", ""))/(100 if match[2] else 1)


def test_relaxed_accuracy_is_that_of_exact_arithmetic():
    "The definition once more, in fractions: they differ only where binary rounding meets a change of 5 % (to one part in 10⁹)."
    rng, rounded, right = random.Random(1), 0, 0
    pattern = r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(%?)"
    for prediction, target in (numbers(rng) for _ in range(PAIRS)):
        value, goal = fraction(prediction.strip(), pattern), fraction(target, pattern)
        wanted = abs(value - goal)*20 <= abs(goal) if value is not None and goal else prediction.strip().lower() == target.lower()
        right += wanted
        if relaxed_accuracy(prediction, [target]) == wanted: continue
        assert abs(abs(value - goal)*20 - abs(goal)) <= abs(goal)/10**9, (prediction, target)
        rounded += 1
    assert PAIRS/10 < right < PAIRS*9/10 and rounded < PAIRS/20, (right, rounded)


def test_strict_accuracy_is_that_of_exact_arithmetic():
    rng, rounded = random.Random(2), 0
    pattern = r"([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?)(%?)"
    for prediction, target in (numbers(rng) for _ in range(PAIRS)):
        said, truth = (text.strip().lower().removesuffix(".") for text in (prediction, target))
        value, goal = (fraction(re.sub(r"^([+-]?)\$([+-]?)", r"\1\2", text), pattern) for text in (said, truth))
        numeric = value is not None and goal is not None and not re.fullmatch(r"(18|19|20)\d\d", truth)
        wanted = abs(value - goal)*20 <= abs(goal) if numeric else said == truth
        if relaxed_accuracy_strict(prediction, [target]) == wanted: continue
        assert numeric and abs(abs(value - goal)*20 - abs(goal)) <= abs(goal)/10**9, (prediction, target)
        rounded += 1
    assert rounded < PAIRS/20, rounded
