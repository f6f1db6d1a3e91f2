"""ScienceQA: the official scores of LLaVA's released answers."""

from pathlib import Path

import pytest

from eval.benchmarks import scienceqa
from eval.report import make_report
from eval.scoring.protocol import Question
from sparse_vlm.data.instructions import OPTION_LETTER
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import SHARED, needs_shared, unpack_scienceqa, write_json

FOLDER = SHARED / "scienceqa"


@pytest.fixture(params=["labels and answers", pytest.param("official files", marks=needs_shared)])
def released(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The folder of LLaVA's question file, and LLaVA-1.5-13B's answers."""
    if request.param == "official files":
        return FOLDER, FOLDER / "answers.llava-v1.5-13b.jsonl"
    return unpack_scienceqa(tmp_path), tmp_path / "answers.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize("annotations", ["the folder", "the file", None])
def test_official_scores_of_llava(released: tuple[Path, Path], annotations: str | None) -> None:
    folder, answers = released
    file = folder / scienceqa.LLAVA_FILE
    known = {"the folder": folder, "the file": file, None: None}[annotations]
    report = make_report("scienceqa", answers, questions=file, annotations=known)
    scores = report["scores"]
    assert (round(100 * scores["accuracy"], 4), round(100 * scores["accuracy_image"], 4)) == (74.3928, 71.6411)
    assert report["counts"] == {"accuracy": 4241, "accuracy_image": 2017, "accuracy_text": 2224}
    assert report["published"]["ours"] == pytest.approx(71.6411, abs=1e-4)
    assert report["floors"]["always A"]["accuracy"] == 1700 / 4241


@pytest.fixture
def llava_file(tmp_path: Path) -> Path:
    turns = [{"from": "human", "value": "<image>\nContext: N/A\nWhich?\nA. x\nB. y"}, {"from": "gpt", "value": "B"}]
    text_only = [{"from": "human", "value": "Why?\nA. x\nB. y"}, {"from": "gpt", "value": "A"}]
    records = [{"id": "7", "image": "7/image.png", "conversations": turns}, {"id": "9", "conversations": text_only}]
    return write_json(tmp_path / scienceqa.LLAVA_FILE, records)


def test_questions_with_and_without_images(llava_file: Path) -> None:
    assert scienceqa.load_questions(llava_file, Path("images")) == [
        Question("7", f"Context: N/A\nWhich?\nA. x\nB. y\n{OPTION_LETTER}", Path("images/7/image.png")),
        Question("9", f"Why?\nA. x\nB. y\n{OPTION_LETTER}", None),
    ]


def test_the_official_problems_give_the_same_scores(llava_file: Path, tmp_path: Path) -> None:
    questions = scienceqa.load_questions(llava_file, None)
    problems = {
        "7": {"split": "test", "answer": 1, "subject": "natural science", "grade": "grade2"},
        "8": {"split": "train", "answer": 0},
        "9": {"split": "test", "answer": 0, "subject": "social science", "grade": "grade7"},
    }
    write_json(tmp_path / "problems.json", problems)
    by_kind = {
        ("accuracy_by_subject", "natural science"): 1,
        ("accuracy_by_subject", "social science"): 0,
        ("accuracy_by_grades", "1-6"): 1,
        ("accuracy_by_grades", "7-12"): 0,
    }
    for annotations in (tmp_path, tmp_path / "problems.json", llava_file):
        scores = scienceqa.BENCHMARK.score(questions, ["B. y", "C"], annotations)
        assert {path: score.value for path, score in scores.items()} == {
            ("accuracy",): 0.5,
            ("accuracy_image",): 1,
            ("accuracy_text",): 0,
        } | ({} if annotations == llava_file else by_kind)


@pytest.mark.parametrize(
    ("problems", "sentence"),
    [
        ({"7": {"split": "test", "answer": 1}}, "has no annotation for question id '9'"),
        (
            {str(i): {"split": "test", "answer": 1} for i in (7, 8, 9)},
            "annotates 1 questions that were not asked, e.g. '8'",
        ),
        ({"7": {"split": "test", "answer": 5}}, "the answer to question '7' is 'F'"),
        ({"7": {"answer": 5}}, '"split" is missing'),
        ([], "must be a list of conversations"),
    ],
)
def test_annotations_of_other_questions_are_an_error(
    llava_file: Path, tmp_path: Path, problems: object, sentence: str
) -> None:
    questions = scienceqa.load_questions(llava_file, None)
    with pytest.raises(UserError, match=sentence):
        scienceqa.BENCHMARK.score(questions, ["A", "B"], write_json(tmp_path / "problems.json", problems))


def test_a_folder_without_annotations(llava_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no problems\.json and no llava_test_CQM-A\.json"):
        scienceqa.BENCHMARK.score(scienceqa.load_questions(llava_file, None), ["A", "B"], tmp_path / "empty")


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
def test_read_letter(text: str, letter: str | None) -> None:
    assert scienceqa.read_letter(text) == letter
