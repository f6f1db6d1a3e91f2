"""POPE: the official scores of LLaVA's released answers, and label files of other questions."""

import json
from pathlib import Path

import pytest

from eval.benchmarks import pope
from eval.report import make_report
from eval.score import main
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import unpack_pope, write_lines

ANSWERS = "answers.llava-v1.5-13b.random.jsonl"
QUESTIONS = "llava_pope_test.random.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return unpack_pope(tmp_path)


def test_official_score_of_llava(folder: Path) -> None:
    report = make_report("pope", folder / ANSWERS, questions=folder / QUESTIONS, annotations=folder)
    assert report["scores"].keys() == {"random"}
    scores = report["scores"]["random"]
    assert scores.keys() == {"accuracy", "precision", "recall", "f1", "yes_ratio"}
    assert (round(scores["accuracy"], 7), round(scores["f1"], 7)) == (0.8800687, 0.8713601)
    assert scores["yes_ratio"] == pytest.approx(1213 / 2910)
    assert report["counts"]["random"]["f1"] == report["questions"] == 2910
    low, high = report["confidence_95"]["random"]["f1"]
    assert 0.85 < low < scores["f1"] < high < 0.89
    always_yes = report["floors"]["always yes"]["random"]
    assert (always_yes["recall"], always_yes["yes_ratio"]) == (1, 1)
    assert report["published"]["ours"] is None  # the mean of three categories, of which two were not asked


def test_the_official_file_asks_the_same_questions(folder: Path) -> None:
    ours = pope.load_questions(folder / "coco_pope_random.json", folder)
    llavas = pope.load_questions(folder / QUESTIONS, folder)
    assert [(q.text, q.image, q.category) for q in ours] == [(q.text, q.image, q.category) for q in llavas]


@pytest.mark.slow
def test_a_label_file_in_another_order_gives_the_same_score(folder: Path) -> None:
    lines = (folder / "coco_pope_random.json").read_text().splitlines()
    (folder / "coco_pope_random.json").write_text("\n".join(reversed(lines)) + "\n")
    report = make_report("pope", folder / ANSWERS, questions=folder / QUESTIONS, annotations=folder)
    assert round(report["scores"]["random"]["f1"], 7) == 0.8713601


def test_a_repeated_question_and_ids_with_letters(tmp_path: Path) -> None:
    """Equal questions take their labels in order; annotations may be the file itself."""
    line = {"image": "1.jpg", "text": "Is there a cat in the image?"}
    labels = [line | {"question_id": f"q{i}", "label": label} for i, label in enumerate(("yes", "no"))]
    file = write_lines(tmp_path / "coco_pope_popular.json", labels)
    questions = pope.load_questions(file, None)
    for annotations in (tmp_path, file):
        scores = pope.BENCHMARK.score(questions, ["Yes", "No"], annotations)
        assert scores["popular", "accuracy"].value == 1


@pytest.mark.slow
def test_all_three_categories_give_the_published_mean(folder: Path) -> None:
    questions = [json.loads(line) for line in (folder / QUESTIONS).read_text().splitlines()]
    answers = [json.loads(line) for line in (folder / ANSWERS).read_text().splitlines()]
    both = [
        (
            question | {"category": category, "question_id": f"{category} {i}"},
            answer | {"question_id": f"{category} {i}"},
        )
        for category in pope.CATEGORIES
        for i, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]
    write_lines(folder / "questions.jsonl", [{**q, "question_id": i} for i, (q, _) in enumerate(both)])
    write_lines(folder / "answers.jsonl", [{**a, "question_id": i} for i, (_, a) in enumerate(both)])
    for category in pope.CATEGORIES[1:]:
        (folder / f"coco_pope_{category}.json").write_text((folder / "coco_pope_random.json").read_text())
    report = make_report("pope", folder / "answers.jsonl", questions=folder / "questions.jsonl", annotations=folder)
    assert list(report["scores"]) == list(pope.CATEGORIES)
    assert report["published"]["ours"] == pytest.approx(87.13601, abs=1e-5)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda lines: [*lines, lines[0].replace("snowboard", "zebra")], "2911 questions"),
        (
            lambda lines: [lines[0].replace("snowboard", "zebra"), *lines[1:]],
            "1 of them are not in it, e.g. 'Is there a sn",
        ),
        (lambda lines: lines[:-1], "2909 questions"),
        (lambda lines: [lines[0].replace('"yes"', '"maybe"'), *lines[1:]], "a label is 'maybe'"),
        (lambda lines: ["{", *lines[1:]], "line 1 is not JSON"),
        (lambda lines: [], "is empty"),
        (None, "has no coco_pope_random.json"),
    ],
)
def test_labels_of_other_questions_are_an_error(
    folder: Path, damage: object, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = folder / "coco_pope_random.json", folder / "report.json"
    if callable(damage):
        file.write_text("".join(f"{line}\n" for line in damage(file.read_text().splitlines())))
    else:
        file.rename(folder / "coco_pope_popular.json")
    arguments = ["--questions", folder / QUESTIONS, "--answers", folder / ANSWERS, "--annotations", folder]
    assert main(["pope", *map(str, arguments), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not output.exists()


def test_errors_name_an_unknown_category(folder: Path) -> None:
    with pytest.raises(UserError, match="category is 'questions'"):
        pope.load_questions((folder / "coco_pope_random.json").rename(folder / "questions.json"), None)


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
    assert pope.says_yes(text) is yes


def test_binary_scores() -> None:
    scores = pope.binary_scores(true_yes=3, false_yes=1, false_no=2, true_no=4)
    assert scores == pytest.approx({"accuracy": 0.7, "precision": 0.75, "recall": 0.6, "f1": 2 / 3, "yes_ratio": 0.4})
    assert pope.binary_scores(0, 0, 2, 3) == {"accuracy": 0.6, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}
