"""MME: the official scores of LaVIN's sample answers, and templates of other questions."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from eval.answers import match_answers, read_answers
from eval.benchmarks import mme
from eval.report import make_report
from eval.scoring.protocol import Question
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import SHARED, needs_shared, unpack_mme, write_lines

TEMPLATES = SHARED / "mme" / "Your_Results"
LLAVA_QUESTIONS = SHARED / "mme" / "llava_mme.jsonl"


class Anchor(NamedTuple):
    """LaVIN's sample answers with the questions and right answers that they belong to."""

    questions: Path
    templates: Path
    answers: Path


def official_files(folder: Path) -> Anchor:
    """Return the complete official files, with LaVIN's answers in LLaVA's format and with LLaVA's prompts."""
    said = {}
    for file in (SHARED / "mme" / "LaVIN").glob("*.txt"):
        for line in file.read_text(encoding="utf-8").rstrip("\n").split("\n"):
            image, question, _, text = line.split("\t")
            said[file.stem, image, question.removesuffix("Please answer yes or no.").strip()] = text
    lines = []
    for line in LLAVA_QUESTIONS.read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        key = (question["category"], Path(question["image"]).name, question["text"].split("\n")[0].strip())
        lines.append({"question_id": question["question_id"], "prompt": question["text"], "text": said[key]})
    return Anchor(LLAVA_QUESTIONS, TEMPLATES, write_lines(folder / "lavin.jsonl", lines))


@pytest.fixture(scope="module", params=["labels and answers", pytest.param("official files", marks=needs_shared)])
def lavin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Anchor:
    folder = tmp_path_factory.mktemp("mme")
    if request.param == "official files":
        return official_files(folder)
    unpack_mme(folder)
    return Anchor(folder / "llava_mme.jsonl", folder / "templates", folder / "lavin.jsonl")


def test_official_scores_of_lavin(lavin: Anchor) -> None:
    report = make_report("mme", lavin.answers, questions=lavin.questions, annotations=lavin.templates)
    scores = report["scores"]
    assert (round(scores["perception"], 4), round(scores["cognition"], 4)) == (963.6114, 249.6429)
    assert list(scores["tasks"]) == [*mme.PERCEPTION, *mme.COGNITION]
    assert scores["tasks"]["existence"] == 185
    assert sum(scores["tasks"].values()) == pytest.approx(scores["perception"] + scores["cognition"])
    assert (report["counts"]["perception"], report["counts"]["cognition"], report["questions"]) == (2114, 260, 2374)
    low, high = report["confidence_95"]["perception"]
    assert 900 < low < scores["perception"] < high < 1030
    assert report["floors"]["always yes"]["perception"] == 500
    assert report["scale"] == "points"
    assert report["published"]["ours"] == scores["perception"]


def test_answers_in_another_order_are_the_same(lavin: Anchor, tmp_path: Path) -> None:
    """The two questions about an image share an id; their prompts differ."""
    lines = lavin.answers.read_text().splitlines()
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(reversed(lines)) + "\n")
    questions = mme.load_questions(lavin.questions, None)
    scores = mme.BENCHMARK.score(questions, match_answers(read_answers(file), questions, file), lavin.templates)
    assert round(scores["perception",].value, 4) == 963.6114


def test_the_templates_are_the_same_questions(lavin: Anchor) -> None:
    ours = {(q.category, Path(q.image_name).stem, q.text) for q in mme.load_questions(lavin.templates, None)}
    llavas = {(q.category, Path(q.image_name).stem, q.text) for q in mme.load_questions(lavin.questions, None)}
    assert ours == llavas
    assert len(ours) == 2374


TEMPLATE = "1.jpg\tIs it a cat? Please answer yes or no.\tYes\n1.jpg\tIs it a dog? Please answer yes or no.\tNo\n"


@pytest.fixture
def count(tmp_path: Path) -> tuple[list[Question], Path]:
    """The questions of a task with one image, and the folder of templates."""
    (tmp_path / "count.txt").write_text(TEMPLATE)
    return mme.load_questions(tmp_path, None), tmp_path


def test_some_of_the_tasks_have_no_sum(count: tuple[list[Question], Path]) -> None:
    questions, folder = count
    assert [question.text.split("\n")[0] for question in questions] == ["Is it a cat?", "Is it a dog?"]
    scores = mme.BENCHMARK.score(questions, ["Yes, it is", "No"], folder)
    assert {path: score.value for path, score in scores.items()} == {("tasks", "count"): 200}
    assert mme.BENCHMARK.score(questions, ["yes", "Yes"], folder)["tasks", "count"].value == 50
    assert mme.BENCHMARK.score(questions, ["A cat", "no"], folder)["tasks", "count"].value == 50
    assert mme.BENCHMARK.published is not None
    assert mme.BENCHMARK.published[1](scores) is None


@pytest.mark.parametrize("inner", ["", "questions_answers_YN"])
def test_the_folder_with_the_images_has_the_answers_too(
    count: tuple[list[Question], Path], tmp_path: Path, inner: str
) -> None:
    """The published MME_Benchmark has a file of questions for each image."""
    folder = tmp_path / "MME_Benchmark" / "count" / inner
    folder.mkdir(parents=True)
    (folder / "1.txt").write_text("\n".join(line.split("\t", 1)[1] for line in TEMPLATE.splitlines()))
    scores = mme.BENCHMARK.score(count[0], ["Yes", "No"], tmp_path / "MME_Benchmark")
    assert scores["tasks", "count"].value == 200
    (folder / "1.txt").write_text("Is it a cat? Please answer yes or no.\tYes\nIs it a dog?")
    with pytest.raises(UserError, match="line 2 must be question and Yes or No"):
        mme.BENCHMARK.score(count[0], ["Yes", "No"], tmp_path / "MME_Benchmark")


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (TEMPLATE.replace("dog", "fox"), "1 of them are not in it, e.g. 'Is it a dog"),
        (TEMPLATE + TEMPLATE.replace("1.jpg", "2.jpg"), r"count.txt \(4 questions\) does not belong to the 2"),
        (TEMPLATE.replace("Yes", "Perhaps"), "line 1 must be image, question and Yes or No"),
        (TEMPLATE.replace("\tNo", ""), "line 2 must be"),
        (None, "has no count.txt"),
    ],
)
def test_templates_of_other_questions_are_an_error(
    count: tuple[list[Question], Path], template: str | None, sentence: str
) -> None:
    questions, folder = count
    if template is None:
        (folder / "count.txt").rename(folder / "color.txt")
    else:
        (folder / "count.txt").write_text(template)
    with pytest.raises(UserError, match=sentence):
        mme.BENCHMARK.score(questions, ["Yes", "No"], folder)


def test_errors_name_an_unknown_task(count: tuple[list[Question], Path]) -> None:
    question = Question("1.jpg", "Is it?", Path("1.jpg"), "counting")
    with pytest.raises(UserError, match="'counting' is not a task of MME"):
        mme.BENCHMARK.score([question], ["Yes"], count[1])


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
    assert mme.read_answer(text) == read


def test_task_score() -> None:
    assert mme.task_score([(True, True), (True, False)]) == 75 + 50
    assert mme.task_score([(True, True)]) == 200
