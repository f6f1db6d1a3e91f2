"""MME: 14 tasks with two yes/no questions about each image; the right answer is yes to one and no to the other.

The score of a task is the percentage of right answers plus the percentage of images with both right, at most 200.
Perception is the sum over ten tasks, cognition over four. Published "MME" is usually perception, sometimes the sum.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.intervals import bootstrap_sums, middle_95
from eval.scoring.floors import constant_floor
from eval.scoring.labels import Key, match_labels, missing_label_file, read_by_category
from eval.scoring.llava_format import image_file, is_llava_file, read_llava_questions
from eval.scoring.protocol import Benchmark, Mark, Predictions, Question, Score, Scores
from eval.scoring.records import numbered_lines, read_text, require
from sparse_vlm.data.instructions import SHORT_ANSWER
from sparse_vlm.errors import UserError

PROTOCOL = (
    "MME, asked for a single word or phrase; percent of right answers plus percent of images with both answers right, "
    "summed over the tasks; the published column is perception"
)
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TEMPLATE_ENDING = "Please answer yes or no."


def load_questions(file: Path | None, images: Path | None) -> list[Question]:
    """Load LLaVA's llava_mme.jsonl or the folder of official templates, with LLaVA's instruction."""
    path = require(file, "--questions", "LLaVA's llava_mme.jsonl or the folder of the official per-task templates")
    if path.is_dir():
        return [
            Question(f"{task}/{name}", f"{words}\n{SHORT_ANSWER}", image_file(images, f"{task}/{name}"), task)
            for task in _tasks(path)
            for name, words, _ in _read_task(path, task)
        ]
    if is_llava_file(path):
        return read_llava_questions(path, images)
    raise UserError(f"{path} is neither LLaVA's llava_mme.jsonl nor the folder of MME's templates.")


def _tasks(folder: Path) -> list[str]:
    tasks = [task for task in (*PERCEPTION, *COGNITION) if (folder / f"{task}.txt").is_file()]
    if not tasks:
        raise UserError(f"{folder} has none of MME's templates ({PERCEPTION[0]}.txt, ...).")
    return tasks


def _read_task(folder: Path, task: str) -> list[tuple[str, str, bool]]:
    """Return (image, question's words, whether yes is right) for each question of a task.

    The template TASK.txt has tab-separated lines; results in it are ignored. MME_Benchmark, the folder with the images,
    has a file for each image instead: TASK/IMAGE.txt or TASK/questions_answers_YN/IMAGE.txt.
    """
    template = folder / f"{task}.txt"
    if template.is_file() or not (folder / task).is_dir():
        return [(cells[0], _words(cells[1]), cells[2] == "Yes") for cells in _cells(template, 3)]
    inner = folder / task / "questions_answers_YN"
    files = sorted((inner if inner.is_dir() else folder / task).glob("*.txt"))
    return [(file.stem, _words(cells[0]), cells[1] == "Yes") for file in files for cells in _cells(file, 2)]


def _cells(path: Path, count: int) -> list[list[str]]:
    """Return the cells of each line: `count` cells ending with the right answer, and at most a result after them."""
    rows = []
    for number, line in numbered_lines(read_text(path)):
        cells = line.rstrip("\r").split("\t")
        if len(cells) not in (count, count + 1) or cells[count - 1].strip() not in ("Yes", "No"):
            what = "image, question and Yes or No" if count == 3 else "question and Yes or No"
            raise UserError(f"{path}, line {number} must be {what}, separated by tabs.")
        rows.append([cell.strip() for cell in cells])
    return rows


def _words(prompt: str) -> str:
    """Return the question without LLaVA's or the template's instruction."""
    return prompt.replace(SHORT_ANSWER, "").strip().removesuffix(TEMPLATE_ENDING).strip()


def _labels(questions: Sequence[Question], folder: Path, task: str) -> list[bool]:
    """Return whether yes is the right answer to each question of a task.

    Raises:
        UserError: no template, or one with other questions.
    """
    path = folder / f"{task}.txt"
    if not path.is_file() and not (folder / task).is_dir():
        raise missing_label_file(path.name, folder, questions, task)
    labelled = [((Path(image).stem, words), yes) for image, words, yes in _read_task(folder, task)]
    return match_labels([_image_and_words(question) for question in questions], labelled, path, task)


def _image_and_words(question: Question) -> Key:
    return Path(question.image_name).stem, _words(question.text)


def _pairs(questions: Sequence[Question], right: Sequence[bool], task: str) -> list[tuple[bool, bool]]:
    """Return for each image whether its two questions are answered right."""
    by_image: dict[str, list[bool]] = {}
    for question, hit in zip(questions, right, strict=True):
        by_image.setdefault(_image_and_words(question)[0], []).append(hit)
    pairs = []
    for image, hits in by_image.items():
        if len(hits) != 2:
            raise UserError(
                f"MME asks two questions about each image, but there are {len(hits)} about {image!r} of {task}."
            )
        pairs.append((hits[0], hits[1]))
    return pairs


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[bool]:
    """Return whether yes is the right answer to each question."""
    folder = require(annotations, "--annotations", "the folder of the official per-task templates")
    unknown = {question.category for question in questions} - {*PERCEPTION, *COGNITION}
    if unknown:
        raise UserError(f'{sorted(unknown)[0]!r} is not a task of MME. In LLaVA\'s file the task is the "category".')
    tasks = list(dict.fromkeys(question.category for question in questions))
    return read_by_category(questions, tasks, lambda members, task: _labels(members, folder, task))


def read_answer(text: str) -> str:
    """Read an answer as MME does: "yes" or "no" if its first four letters contain that word, otherwise "other"."""
    start = text.lower()
    if start not in ("yes", "no"):
        start = start[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mark(question: Question, text: str, known: bool) -> Mark:
    """Mark an answer by the yes or no at its start."""
    given, right = read_answer(text), "yes" if known else "no"
    return Mark(question, known, text, None if given == "other" else given, float(given == right), right)


def _task_and_image(question: Question) -> tuple[str, str]:
    """Return the key that the two questions about an image share."""
    return question.category, _image_and_words(question)[0]


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Compute the score of every task, and of perception and cognition if all their tasks were asked."""
    tasks: dict[str, list[tuple[bool, bool]]] = {}
    for task in (*PERCEPTION, *COGNITION):
        rows = [row for row in marks if row.question.category == task]
        if rows:
            tasks[task] = _pairs([row.question for row in rows], [bool(row.credit) for row in rows], task)
    draws = {task: _draws(pairs, seed) for seed, (task, pairs) in enumerate(tasks.items())}
    scores: Scores = {}
    for name, parts in (("perception", PERCEPTION), ("cognition", COGNITION)):
        if all(task in tasks for task in parts):
            value = sum(task_score(tasks[task]) for task in parts)
            count = 2 * sum(len(tasks[task]) for task in parts)
            scores[name,] = Score(value, count, middle_95(sum(draws[task] for task in parts)))
    for task, pairs in tasks.items():
        scores["tasks", task] = Score(task_score(pairs), 2 * len(pairs), middle_95(draws[task]))
    return scores


def task_score(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Compute the score of one task, 0 to 200: percent of right answers plus percent of images with both right.

    Args:
        pairs: for each image, whether its two questions are answered right.
    """
    questions = sum(map(sum, pairs)) / (2 * len(pairs))
    images = sum(map(all, pairs)) / len(pairs)
    return questions * 100 + images * 100


def _draws(pairs: Sequence[tuple[bool, bool]], seed: int) -> NDArray[np.float64]:
    """Compute a task's score in random draws of its images; each task has its own `seed`."""
    columns = [(first + second, first and second) for first, second in pairs]
    sums = bootstrap_sums(columns, range(len(pairs)), seed)
    return 100 * (sums[:, 0] / 2 + sums[:, 1]) / len(pairs)


def floors(questions: Sequence[Question], known: Sequence[bool]) -> dict[str, Predictions]:
    """Return the floor that always answers "Yes": half of the questions, but no image with both right."""
    return constant_floor("always yes", "Yes", questions)


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL,
    load_questions=load_questions,
    known=read_known,
    mark=mark,
    aggregate=aggregate,
    unit=_task_and_image,
    floors=floors,
    scale="points",
    published=("MME", lambda scores: scores["perception",].value if ("perception",) in scores else None),
)
