"""MVBench: 20 tasks of 200 questions about short videos, with two to five options.

The official rule compares the first word of an answer with "(A)", the right option, so an empty answer and "(" are
right whatever is asked (`accuracy_official`). `accuracy` counts an answer that fits several options, or none, as wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.intervals import mean_score, mean_scores_by
from eval.scoring.floors import most_frequent_letter_floor
from eval.scoring.protocol import Benchmark, Mark, Predictions, Question, Scores, Video
from eval.scoring.records import Record, align, field, read_json_as, require
from sparse_vlm.errors import UserError

PROTOCOL = (
    "MVBench, {tasks} of 20 tasks, the official prompt without its beginning of the answer; an answer is read by its "
    "first word, as officially, but is wrong if this fits several options or none; accuracy_official is the official "
    "rule, to which an empty answer is right"
)
WHAT = "the folder of MVBench's 20 tasks (action_sequence.json, ...), or the file of one"
INSTRUCTION = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question."
)
ENDING = "Only give the best option."
# task, in the official order -> folder of its videos
TASKS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
# tasks whose questions are about a part of the video, from "start" to "end"
PARTS = ("action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning")
LATER = "data0613"  # folder of videos that the authors added later, with the same folders in it


@dataclass(frozen=True)
class Entry:
    """A question: its task, its place in the task's file, its options and the right letter."""

    task: str
    index: int
    video: str
    part: tuple[float, float] | None
    question: str
    options: tuple[str, ...]
    answer: str

    @property
    def id(self) -> str:
        """The files have no ids."""
        return f"{self.task}/{self.index}"


def letter_of(place: int) -> str:
    """Return the letter of an option, from 0 for A."""
    return chr(ord("A") + place)


def load_questions(file: Path | None, videos: Path | None) -> list[Question]:
    """Load the questions about the videos in a folder, whose folders are those of the official archives."""
    entries = read_entries(require(file, "--questions", WHAT))
    return [
        Question(entry.id, _prompt(entry), Video(_file(entry, videos), entry.part), entry.task) for entry in entries
    ]


def _prompt(entry: Entry) -> str:
    options = [f"({letter_of(place)}) {words}" for place, words in enumerate(entry.options)]
    return "\n".join([INSTRUCTION, f"Question: {entry.question}", "Options:", *options, ENDING])


def _file(entry: Entry, videos: Path | None) -> Path:
    usual = Path(TASKS[entry.task], entry.video)
    if videos is None:
        return usual
    later = videos / LATER / usual
    return later if later.exists() and not (videos / usual).exists() else videos / usual


def read_entries(path: Path) -> list[Entry]:
    """Read the tasks that a folder has, or one task, in the official order.

    Raises:
        UserError: a file cannot be read, a field is missing, or the folder has no task.
    """
    files = [path / f"{task}.json" for task in TASKS] if path.is_dir() else [path]
    files = [file for file in files if file.is_file()] if path.is_dir() else files
    if not files:
        raise UserError(f"{path} has none of MVBench's tasks (action_sequence.json, ...). Give {WHAT}.")
    if files[0].stem not in TASKS:
        raise UserError(f"{path} is not named after one of MVBench's tasks: {', '.join(TASKS)}.")
    return [entry for file in files for entry in _read_task(file)]


def _read_task(file: Path) -> list[Entry]:
    records = read_json_as(file, list, "a list of questions, as MVBench's tasks are")
    return [_entry(record, file.stem, index, f"{file}, entry {index}") for index, record in enumerate(records)]


def _entry(record: Record, task: str, index: int, place: str) -> Entry:
    video, question, answer = (field(record, name, str, place) for name in ("video", "question", "answer"))
    options = field(record, "candidates", list, place)
    if not 1 < len(options) <= 26 or not all(isinstance(option, str) for option in options):
        raise UserError(f'{place}: "candidates" must be the words of two or more options, got {options!r:.80}.')
    if answer not in options:
        raise UserError(f'{place}: the "answer" {answer!r:.80} is not among the "candidates".')
    right = len(options) - 1 - options[::-1].index(answer)  # officially the last of equal ones
    part = None
    if task in PARTS:
        part = _seconds(record, "start", place), _seconds(record, "end", place)
        if part[0] > part[1]:
            raise UserError(f"{place}: the part from {part[0]:g} to {part[1]:g} s ends before it starts.")
    return Entry(task, index, video, part, question, tuple(options), letter_of(right))


def _seconds(record: Record, name: str, place: str) -> float:
    value = record.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise UserError(f'{place}: "{name}" must be a number of seconds in the video, got {value!r:.80}.')
    return float(value)


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[Entry]:
    """Return the entry of each question."""
    path = require(annotations, "--annotations", WHAT)
    entries = {entry.id: entry for entry in read_entries(path)}
    return align(questions, [str(question.id) for question in questions], entries, path)


def is_right(text: str, letter: str) -> bool:
    """Apply the official rule to an answer: its first word and "(A)", the right option, contain each other.

    The official prompt begins the answer with "(", and only the first line of an answer counts.
    """
    option = f"({letter.lower()})"
    word = text.strip().split("\n")[0].lower().split(" ")[0]
    return word.replace(".", "") in option or option in word


def mark(question: Question, text: str, known: Entry) -> Mark:
    """Read the only option that the answer is right for by the official rule."""
    fitting = [letter for letter in map(letter_of, range(len(known.options))) if is_right(text, letter)]
    letter = fitting[0] if len(fitting) == 1 else None
    return Mark(question, known, text, letter, float(letter == known.answer), known.answer)


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Compute the accuracy over all questions, also by the official rule, and of each task."""
    right, groups = [row.credit for row in marks], [row.question.image_name for row in marks]
    official = [float(is_right(row.text, row.known.answer)) for row in marks]
    tasks = [row.known.task for row in marks]
    return (
        {("accuracy",): mean_score(right, groups), ("accuracy_official",): mean_score(official, groups)}
        | mean_scores_by("accuracy_by_task", tasks, right, groups)
        | mean_scores_by("accuracy_official_by_task", tasks, official, groups)
    )


def floors(questions: Sequence[Question], known: Sequence[Entry]) -> dict[str, Predictions]:
    """Return the floor that always gives the most frequent right letter of these questions."""
    return most_frequent_letter_floor((entry.answer for entry in known), questions)


BENCHMARK = Benchmark(
    protocol=lambda questions: PROTOCOL.format(tasks=len({question.category for question in questions})),
    load_questions=load_questions,
    known=read_known,
    mark=mark,
    aggregate=aggregate,
    medium="video",
    max_new_tokens=100,
    floors=floors,
    annotated=True,
)
