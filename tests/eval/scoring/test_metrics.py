"""Metrics against the official scorers' own results, and against values worked out by hand."""

import json

import pytest

from eval.scoring.metrics import (
    anls,
    binary_scores,
    exact_match,
    gqa_form,
    matched_option,
    mme_reads,
    mme_score,
    most_frequent,
    pope_says_yes,
    question_only_lookup,
    scienceqa_letter,
    textvqa_accuracy,
    vqa_accuracy,
    wilson_interval,
)
from eval.scoring.vqa_text import CONTRACTIONS, simplify, simplify_evalai
from tests.eval.benchmarks.anchors import FIXTURES


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("red", "red", True),
        (" Red.\n", "red", True),
        ("red .", "red", True),
        ("a red one", "red", False),
        ("redred", "red", False),
        ("", "red", False),
        ("red..", "red", False),
        ("no", "not", False),
    ],
)
def test_exact_match(prediction: str, answer: str, expected: bool) -> None:
    assert exact_match(prediction, answer) is expected


def test_400_cases_of_the_official_vqa_scorers() -> None:
    cases = json.loads((FIXTURES / "vqa_accuracy.json").read_text(encoding="utf-8"))
    assert len(cases) == 400
    assert [vqa_accuracy(case["prediction"], case["answers"]) for case in cases] == [case["vqav2"] for case in cases]
    assert [textvqa_accuracy(case["prediction"], case["answers"]) for case in cases] == [
        case["textvqa"] for case in cases
    ]
    assert sum(case["vqav2"] != case["textvqa"] for case in cases) == 14


@pytest.mark.parametrize(("given", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_an_answer_counts_by_how_many_annotators_gave_it(given: int, expected: float) -> None:
    answers = ["red"] * given + ["blue"] * (10 - given)
    assert vqa_accuracy("red", answers) == textvqa_accuracy("red", answers) == expected


@pytest.mark.parametrize(
    ("answer", "simple"),
    [
        ("The Dogs.", "dogs"),
        ("dont", "don't"),
        ("shouldntve", "shouldntve"),
        ("shouldn'tve", "shouldn't've"),
        ("somebody'd", "somebodyd"),
        ("Ten past two", "10 past 2"),
        ("none", "0"),
        ("t-shirt", "t shirt"),
        ("t - shirt", "t shirt"),
        ("1,000", "1000"),
        ("1,000 a-b", "1000 ab"),
        ("red, blue", "red blue"),
        ("red,blue", "red blue"),
        ("3.5 m.", "3.5 m"),
        (".5", ".5"),
        ("a.b", "ab"),
        ("." * 40 + "x", "." * 8 + "x"),
        ("what's up: x", "what's up: x"),
    ],
)
def test_simplified_as_the_vqa_challenge_does(answer: str, simple: str) -> None:
    assert simplify(answer) == simple


def test_evalai_simplifies_before() -> None:
    assert simplify_evalai("The dog's,  house?") == "dog 's house"
    assert simplify("The dog's,  house?") == "dog's house"
    assert simplify_evalai("new\nyork") == "new york"


def test_the_contractions_are_the_official_ones() -> None:
    """120 lines there: two change nothing and four have capitals, which words never have when they are looked up."""
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["couldn'tve"] == CONTRACTIONS["couldnt've"] == "couldn't've"
    assert {key for key, value in CONTRACTIONS.items() if value == "'ow's'at"} == {"ow's'at", "'ows'at", "'ow'sat"}
    assert "lets" not in CONTRACTIONS
    assert "shes" not in CONTRACTIONS


def test_gqa_form() -> None:
    assert gqa_form("Yes.") == "yes"
    assert gqa_form("Left..") == "left"
    assert gqa_form(" left") == " left"  # the scorer compares letter by letter


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Hello  World", ["hello world"], 1),
        ("hella  world", ["hello world"], 1 - 1 / 12),  # the longer length is that of the unchanged texts
        ("hello", ["hallo", "yellow"], 0.8),
        ("abcd", ["abxy"], 0.5),
        ("abc", ["xyz"], 0),
        ("", [""], 1),
        ("", ["a"], 0),
        ("kitten", ["sitting"], 1 - 3 / 7),
    ],
)
def test_anls(prediction: str, answers: list[str], expected: float) -> None:
    assert anls(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, there is none", False),
        ("There is not a dog. Yes", False),
        ("There is a dog. No cat", True),
        ("NO", True),
        ("nothing", True),
        ("", True),
        ("Yes\nNo", True),
    ],
)
def test_pope_reads_the_first_sentence(text: str, yes: bool) -> None:
    assert pope_says_yes(text) is yes


def test_binary_scores() -> None:
    scores = binary_scores(true_yes=3, false_yes=1, false_no=2, true_no=4)
    assert scores == pytest.approx({"accuracy": 0.7, "precision": 0.75, "recall": 0.6, "f1": 2 / 3, "yes_ratio": 0.4})
    assert binary_scores(0, 0, 2, 3) == {"accuracy": 0.6, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Yes", "yes"),
        ("YES, it is", "yes"),
        ("no.", "no"),
        ("know", "no"),
        ("I know", "other"),
        ("eyes", "yes"),
        ("The", "other"),
        ("", "other"),
    ],
)
def test_mme_reads_four_letters(text: str, read: str) -> None:
    assert mme_reads(text) == read


def test_mme_score() -> None:
    assert mme_score([(True, True), (True, False)]) == 75 + 50
    assert mme_score([(True, True)]) == 200


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. apostrophe", "B"),
        ("B.", None),
        ("B is right", None),
        ("F", None),
        ("b", None),
        ("So: The answer is C.", "C"),
        ("The answer is C. The answer is D.", None),
        ("", None),
    ],
)
def test_scienceqa_letter(text: str, letter: str | None) -> None:
    assert scienceqa_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(C).", "C"),
        ("The answer is B: a cat", "B"),
        ("it is a Cat", "B"),
        ("a dog or a cat", None),
        ("A or B", None),
        ("E", None),
        ("", None),
        ("a cat " * 9, None),
        ("A cat is what I see", "B"),  # an article
        ("**B**", "B"),
        ("B and this is why", None),  # five words from the end
        ("Cannot determine the answer, B", None),
        ("Z", None),
    ],
)
def test_matched_option(text: str, letter: str | None) -> None:
    assert matched_option(text, {"A": "dog", "B": "cat", "C": "bird"}) == letter


def test_most_frequent_breaks_ties_by_the_alphabet() -> None:
    assert most_frequent(["b", "a", "c", "b", "c"]) == "b"
    assert most_frequent(["c", "b"]) == "b"


def test_question_only_lookup() -> None:
    training = [("q1", "yes"), ("q1", "yes"), ("q1", "no"), ("q2", "no"), ("q2", "no"), ("q3", "no")]
    assert question_only_lookup(training, ["q1", "q3", "unseen", "q1"]) == ["yes", "no", "no", "yes"]


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),
    ],
)
def test_wilson_interval_gives_published_values(successes: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=5e-5)
