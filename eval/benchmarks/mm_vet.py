"""MM-Vet: open questions that need several abilities at once; a judge grades each answer from 0.0 to 1.0.

The judge of published numbers is GPT-4 (gpt-4-0613, temperature 0, mean of five runs). Grades of other judges differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.intervals import mean_score
from eval.scoring.judge_replies import read_grade
from eval.scoring.llava_format import image_file, is_llava_file, read_llava_questions
from eval.scoring.protocol import Benchmark, Mark, Predictions, Question, Scores
from eval.scoring.records import Record, align, field, official_file, read_json_as, require
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_json

PROTOCOL = "MM-Vet, the plain question; mean grade, 0 to 1, given by the judge of --judgements"
MEME = (
    "This meme is poking fun at the fact that the names of the countries Iceland and Greenland are misleading. Despite "
    "its name, Iceland is known for its beautiful green landscapes, while Greenland is mostly covered in ice and snow. "
    "The meme is saying that the person has trust issues because the names of these countries do not accurately "
    "represent their landscapes."
)
# The benchmark's own instruction and examples (github.com/yuweihao/MM-Vet, Apache-2.0); grades depend on them.
JUDGE_PROMPT = f"""\
Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. <AND> in the \
ground truth means it is totally right only when all elements in the ground truth are present in the prediction, and \
<OR> means it is totally right when any one element in the ground truth is present in the prediction. The correctness \
score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 (totally right). Just complete the \
last space of the correctness score.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
What is x in the equation? | -1 <AND> -5 | x = 3 | 0.0
What is x in the equation? | -1 <AND> -5 | x = -1 | 0.5
What is x in the equation? | -1 <AND> -5 | x = -5 | 0.5
What is x in the equation? | -1 <AND> -5 | x = -5 or 5 | 0.5
What is x in the equation? | -1 <AND> -5 | x = -1 or x = -5 | 1.0
Can you explain this meme? | {MEME} | The meme talks about Iceland and Greenland. It's pointing out that despite their \
names, Iceland is not very icy and Greenland isn't very green. | 0.4
Can you explain this meme? | {MEME} | The meme is using humor to point out the misleading nature of Iceland's and \
Greenland's names. Iceland, despite its name, has lush green landscapes while Greenland is mostly covered in ice and \
snow. The text 'This is why I have trust issues' is a playful way to suggest that these contradictions can lead to \
distrust or confusion. The humor in this meme is derived from the unexpected contrast between the names of the \
countries and their actual physical characteristics. | 1.0
"""


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """Load LLaVA's llava-mm-vet.jsonl or the official mm-vet.json."""
    path = require(file, "--questions", "LLaVA's llava-mm-vet.jsonl or the official mm-vet.json")
    if is_llava_file(path):
        return read_llava_questions(path, images)
    return [
        Question(id_, field(record, "question", str, place), image_file(images, field(record, "imagename", str, place)))
        for id_, record, place in _read_official(path)
    ]


def _read_official(path: Path) -> list[tuple[str, Record, str]]:
    content = read_json_as(path, dict, "an object of question id -> question, as MM-Vet's mm-vet.json is")
    return [(id_, record, f"{path}, {id_}") for id_, record in content.items()]


def _official_id(question: Question) -> str:
    """Return the official id, e.g. "v1_0" for LLaVA's 0."""
    return f"v1_{question.id}" if isinstance(question.id, int) else question.id


def _read(annotations: Path | None, questions: Sequence[Question]) -> list[Record]:
    path = official_file(annotations, "the official mm-vet.json", "mm-vet.json")
    records = {id_: record for id_, record, _ in _read_official(path)}
    return align(questions, [_official_id(question) for question in questions], records, path)


def judge_inputs(questions: Sequence[Question], predictions: Predictions, annotations: Path | None) -> list[str]:
    """Build the official prompt with question, ground truth and prediction as the row to complete."""
    prompts = []
    for text, record in zip(predictions, _read(annotations, questions), strict=True):
        truth = field(record, "answer", str, str(annotations)).replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        row = " | ".join([field(record, "question", str, str(annotations)), truth, text, ""])
        prompts.append(f"{JUDGE_PROMPT}\n{row}")
    return prompts


@dataclass(frozen=True)
class _Known:
    """The right answer and the abilities that the question needs."""

    answer: str
    abilities: frozenset[str]


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[_Known]:
    """Return the answer and abilities of each question."""
    place = str(annotations)
    return [
        _Known(field(record, "answer", str, place), frozenset(map(str, field(record, "capability", list, place))))
        for record in _read(annotations, questions)
    ]


def mark(question: Question, text: str, known: _Known) -> Mark:
    """Read the grade in the judge's reply.

    Raises:
        UserError: no grade.
    """
    grade = read_grade(text)
    if grade is None:
        raise UserError(
            f"The judge's reply to question id {question.id!r} has no clear grade from 0 to 1: {text!r:.80}. "
            "Ask the judge again."
        )
    return Mark(question, known, text, f"{grade:g}", grade, known.answer)


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Compute the mean grade over all questions, and over those that need each ability."""
    grades, needs = [row.credit for row in marks], [row.known.abilities for row in marks]
    images = [row.question.image_name for row in marks]
    scores: Scores = {("total",): mean_score(grades, images)}
    for ability in sorted(frozenset[str]().union(*needs)):
        members = [index for index, needed in enumerate(needs) if ability in needed]
        values = [grades[i] for i in members]
        scores["by_ability", ability] = mean_score(values, [images[i] for i in members])
    return scores


def write_submission(file: Path | None, questions: Sequence[Question], predictions: Predictions, output: Path) -> None:
    """Write the official evaluator's file: {"v1_0": answer, ...}."""
    answers = zip(questions, predictions, strict=True)
    write_json(output, {_official_id(question): text for question, text in answers})


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    max_new_tokens=1024,
    load_questions=load_questions,
    known=read_known,
    mark=mark,
    aggregate=aggregate,
    write_submission=write_submission,
    judge_inputs=judge_inputs,
)
