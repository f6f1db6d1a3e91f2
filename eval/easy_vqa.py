"""easy-VQA: 9,673 questions about 1,000 test pictures of one coloured shape. Exact match, by kind of question.

The official format, questions.json with [question, answer, image id] entries, is questions and annotations in one. The
default of all paths is the test split of the installed package `easy-vqa`.
"""

from collections.abc import Sequence
from pathlib import Path

from eval.metrics import bootstrap_interval, exact_match, most_frequent, question_only_lookup
from eval.protocol import Predictions, Question, Score, Scores
from sparse_vlm.data import easy_vqa
from sparse_vlm.errors import UserError

PROTOCOL = (
    "easy-VQA, the plain question, greedy generation, exact match (case, white space and a final full stop do not "
    "count); 95% intervals by bootstrap over images"
)
MAX_NEW_TOKENS = 8


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """The questions of `file` about images in `images`; by default the package's test split."""
    folder = images or easy_vqa.split_folder("test") / "images"
    return [
        Question(
            question.id,
            easy_vqa.prompt(question.text),
            easy_vqa.image_path(folder, question.image_id),
            question.kind,
        )
        for question in _read(file)
    ]


def _read(file: Path | None) -> list[easy_vqa.VqaQuestion]:
    return easy_vqa.read_questions(file or easy_vqa.split_folder("test") / "questions.json")


def score(questions: Sequence[Question], predictions: Predictions, annotations: Path | None) -> Scores:
    """Accuracy over all questions and by kind ("yes/no", "colour", "shape").

    Raises:
        UserError: the annotations are of other questions.
    """
    annotated = _read(annotations)
    if [(known.id, easy_vqa.prompt(known.text)) for known in annotated] != [(q.id, q.text) for q in questions]:
        raise UserError(
            f"The {len(annotated)} annotations ({annotations or 'the installed test split'}) do not belong to the "
            f"{len(questions)} questions that were asked. Give the same file as --questions."
        )
    right = [exact_match(predictions[known.id], known.answer) for known in annotated]
    images = [known.image_id for known in annotated]
    scores: Scores = {("accuracy",): _accuracy(right, images)}
    for kind in sorted({known.kind for known in annotated}):
        members = [i for i, known in enumerate(annotated) if known.kind == kind]
        scores["accuracy_by_type", kind] = _accuracy([right[i] for i in members], [images[i] for i in members])
    return scores


def _accuracy(right: Sequence[bool], images: Sequence[int]) -> Score:
    return Score(sum(right) / len(right), len(right), bootstrap_interval(right, images))


def floors(questions: Sequence[Question], annotations: Path | None) -> dict[str, Predictions]:
    """What needs no picture, learnt from the training questions and answers.

    "majority" always gives the most frequent training answer; "question_only" the most frequent one to the same words.
    """
    training = easy_vqa.load_questions("train")
    majority = most_frequent(known.answer for known in training)
    pairs = [(easy_vqa.prompt(known.text), known.answer) for known in training]
    lookup = question_only_lookup(pairs, [question.text for question in questions])
    return {
        "majority": dict.fromkeys([question.id for question in questions], majority),
        "question_only": dict(zip([question.id for question in questions], lookup, strict=True)),
    }
