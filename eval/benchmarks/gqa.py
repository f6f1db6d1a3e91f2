"""GQA: compositional questions about Visual Genome images, one answer each; usually testdev_balanced.

Besides accuracy, the official scorer computes validity and plausibility (they need its choices.json; testdev has none),
consistency (it needs answers to the entailed questions, that is all of val) and the distance of the distributions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.intervals import mean_score, mean_scores_by
from eval.scoring.floors import most_frequent_answer_floor
from eval.scoring.gqa_distribution import distribution_score
from eval.scoring.llava_format import image_file, is_llava_file, read_llava_questions
from eval.scoring.protocol import Benchmark, Mark, Predictions, Question, Score, Scores
from eval.scoring.records import Record, align, field, official_file, read_json_as, require
from sparse_vlm.data.instructions import SHORT_ANSWER
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_json

PROTOCOL = "GQA, asked for a single word or phrase; exact match in lower case"
WHAT = (
    "the official testdev_balanced_questions.json, which has the answers, or its folder, for *_choices.json beside it"
)
NO_STEPS = ("exist", "query: name", "choose name")  # operations that the scorer does not count as reasoning steps
COMMON = ("color", "material", "shape")  # the possible answers to "what do both have in common?"


@dataclass(frozen=True)
class _Known:
    """A question's official record, and its choices if there is a *_choices.json."""

    record: Record
    choices: Record | None


@dataclass(frozen=True)
class _Answered:
    """A question with its official record, the normalized answer, and the image."""

    id: str
    record: Record
    choices: Record | None
    given: str
    image: str

    @property
    def right(self) -> bool:
        return bool(self.given == self.record["answer"])


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """Load LLaVA's llava_gqa_testdev_balanced.jsonl or an official *_questions.json."""
    path = require(file, "--questions", "testdev_balanced_questions.json or LLaVA's .jsonl")
    if is_llava_file(path):
        return read_llava_questions(path, images)
    questions = []
    for id_, record in _read_official(path).items():
        text = field(record, "question", str, f"{path}, {id_}")
        image = image_file(images, f"{field(record, 'imageId', str, f'{path}, {id_}')}.jpg")
        questions.append(Question(id_, f"{text}\n{SHORT_ANSWER}", image))
    return questions


def _read_official(path: Path) -> dict[str, Record]:
    return read_json_as(path, dict, "an object of question id -> record, as GQA's official files are")


def _read(annotations: Path | None, questions: Sequence[Question]) -> list[Record]:
    path = official_file(annotations, WHAT, "*_questions.json")
    known = align(questions, [str(question.id) for question in questions], _read_official(path), path)
    for question, record in zip(questions, known, strict=True):
        place = f"{path}, {question.id}"
        if question.text.split("\n")[0].strip() != field(record, "question", str, place).strip():
            raise UserError(
                f"{path} has another question under id {question.id!r}: {record['question']!r} instead of "
                f"{question.text!r:.120}."
            )
        field(record, "answer", str, place)
        field(field(record, "types", dict, place), "structural", str, place)
    return known


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[_Known]:
    """Return the official record of each question, and its choices if the annotations' folder has them."""
    records = _read(annotations, questions)
    if annotations is None or not annotations.is_dir() or not any(annotations.glob("*_choices.json")):
        return [_Known(record, None) for record in records]
    path = official_file(annotations, WHAT, "*_choices.json")
    choices = _read_official(path)
    known = []
    for question, record in zip(questions, records, strict=True):
        id_, common = str(question.id), "Common" in str(record["types"].get("detailed"))
        place = f"{path}, {id_}"
        own = {} if common else field(choices, id_, dict, str(path))
        lists = {key: list(COMMON) if common else field(own, key, list, place) for key in ("valid", "plausible")}
        known.append(_Known(record, lists))
    return known


def normalize(prediction: str) -> str:
    """Return an answer as LLaVA passes it to GQA's scorer, which compares exactly: lower case, no final full stops."""
    return prediction.rstrip(".").lower()


def mark(question: Question, text: str, known: _Known) -> Mark:
    """Mark an answer by exact match of the normalized answer. Empty answers are unreadable."""
    given, answer = normalize(text), known.record["answer"]
    return Mark(question, known, text, given if given.strip() else None, float(given == answer), answer)


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Compute the accuracy over balanced questions, in all and by form, structure, meaning, steps and words.

    The official scorer's other numbers are added if the files have what they need.
    """
    answered = [_answered(row.question, row.known, normalize(row.text)) for row in marks]
    balanced = [row for row in answered if row.record.get("isBalanced", True)]
    if not balanced:
        raise UserError("GQA's accuracy counts balanced questions only, and none of these is balanced.")
    values, images = [float(row.right) for row in balanced], [row.image for row in balanced]
    scores: Scores = {("accuracy",): mean_score(values, images)}
    for name, kind in _KINDS.items():
        kinds = [kind(row.record) for row in balanced]
        if all(text is not None for text in kinds):
            scores |= mean_scores_by(name, [str(text) for text in kinds], values, images)
    return scores | _plausibility(balanced) | _consistency(answered, balanced) | _distribution(balanced)


def _answered(question: Question, known: _Known, given: str) -> _Answered:
    return _Answered(str(question.id), known.record, known.choices, given, question.image_name)


def _form(record: Record) -> str:
    return "open" if record["types"]["structural"] == "query" else "binary"


def _steps(record: Record) -> str | None:
    """Return the number of reasoning steps of a question; None: the record does not say."""
    if "semantic" not in record:
        return None
    steps = field(record, "semantic", list, "GQA's questions")
    operations = [": ".join(field(step, key, str, "a step") for key in ("operation", "argument")) for step in steps]
    return str(sum(not any(name in operation for name in NO_STEPS) for operation in operations))


_KINDS: dict[str, Callable[[Record], str | None]] = {
    "accuracy_by_form": _form,
    "accuracy_by_structure": lambda record: str(record["types"]["structural"]),
    "accuracy_by_meaning": lambda record: str(record["types"].get("semantic")),
    "accuracy_by_steps": _steps,
    "accuracy_by_words": lambda record: str(len(record["question"].split())),
}


def _plausibility(balanced: Sequence[_Answered]) -> Scores:
    """Compute validity and plausibility of the answers; empty without a *_choices.json."""
    images = [row.image for row in balanced]
    scores: Scores = {}
    for name, key in (("validity", "valid"), ("plausibility", "plausible")):
        values = [float(row.given in row.choices[key]) for row in balanced if row.choices is not None]
        if values:
            scores[name,] = mean_score(values, images)
    return scores


def _consistency(answered: Sequence[_Answered], balanced: Sequence[_Answered]) -> Scores:
    """Compute the accuracy over questions entailed by rightly answered ones; empty unless all of them were asked."""
    by_id = {row.id: row for row in answered}
    entailed = {row.id: _entailed(row) for row in balanced}
    if not any(entailed.values()) or any(id_ not in by_id for ids in entailed.values() for id_ in ids):
        return {}
    rows = [row for row in balanced if row.right and entailed[row.id]]
    if not rows:
        return {("consistency",): Score(0.0, 0, (0.0, 0.0))}
    values = [sum(by_id[id_].right for id_ in entailed[row.id]) / len(entailed[row.id]) for row in rows]
    return {("consistency",): mean_score(values, [row.image for row in rows])}


def _entailed(row: _Answered) -> list[str]:
    ids = field(row.record, "entailed", list, f"question {row.id}") if "entailed" in row.record else []
    return [str(id_) for id_ in ids if id_ != row.id]


def _distribution(balanced: Sequence[_Answered]) -> Scores:
    """Compute the distance between the frequencies of given and right answers, on its own scale; lower is better."""
    if not all("groups" in row.record for row in balanced):
        return {}
    rows = [(row, field(row.record, "groups", dict, f"question {row.id}").get("global")) for row in balanced]
    grouped = [(row, str(group)) for row, group in rows if group is not None]
    if not grouped:
        return {}
    given, right = [row.given for row, _ in grouped], [str(row.record["answer"]) for row, _ in grouped]
    images = [row.image for row, _ in grouped]
    return {("distribution",): distribution_score([group for _, group in grouped], given, right, images)}


def floors(questions: Sequence[Question], known: Sequence[_Known]) -> dict[str, Predictions]:
    """Return the floor that always gives the most frequent right answer of these questions."""
    return most_frequent_answer_floor((row.record["answer"] for row in known), questions)


def write_submission(file: Path | None, questions: Sequence[Question], predictions: Predictions, output: Path) -> None:
    """Write the official scorer's file of predictions: a list of {"questionId", "prediction"}."""
    answers = zip(questions, predictions, strict=True)
    write_json(output, [{"questionId": str(question.id), "prediction": normalize(text)} for question, text in answers])


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    load_questions=load_questions,
    known=read_known,
    mark=mark,
    aggregate=aggregate,
    floors=floors,
    points=("distribution",),
    write_submission=write_submission,
    published=("GQA", lambda scores: 100 * scores["accuracy",].value),
)
