"""Video-MME: 2,700 questions about 900 videos, of 11 seconds to an hour, with four options each; with or without
subtitles.

The questions come as a table with a row for each question (Hugging Face's .parquet, or .jsonl) or as the official JSON
with an entry for each video. The official scorer leaves unreadable answers out of the count (`accuracy_official`);
`accuracy` counts them as wrong.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval.benchmarks.videos.folder import SUBTITLES, NamedFiles
from eval.intervals import mean_score, mean_scores_by
from eval.scoring.floors import most_frequent_letter_floor
from eval.scoring.protocol import Benchmark, Mark, Predictions, Question, Scores, Video
from eval.scoring.records import Record, align, field, read_json_as, read_lines, read_text, require, require_unique
from sparse_vlm.errors import UserError, one_line, optional_import

PROTOCOL = (
    "Video-MME, the official prompt {subtitles}; right is the first of the letters A to D after the official phrases "
    "are removed; accuracy counts unreadable answers as wrong, accuracy_official leaves them out"
)
WHAT = "Video-MME's questions, .parquet, .jsonl or .json"
SUBTITLES_ABOVE = "This video's subtitles are listed below:\n{}\n"
PROMPT = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option.\n{}\nThe best answer is:"
)
LETTERS = ("A", "B", "C", "D")
# As in the official scorer, which lacks commas between some of them.
PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)
NESTED = {"duration": "duration_category", "domain": "video_category"}  # in the official JSON


@dataclass(frozen=True)
class Entry:
    """A question with its right letter; `video` is the name of the video's file without its ending."""

    id: str
    video: str
    duration: str
    domain: str
    sub_category: str
    task_type: str
    question: str
    options: tuple[str, ...]
    answer: str


def load_questions(file: Path | None, videos: Path | None, subtitles: bool = False) -> list[Question]:
    """Load the questions about the videos below a folder.

    Args:
        file: the official questions.
        videos: a folder; the videos may be in folders in it.
        subtitles: write the words of NAME.srt, which may be anywhere below the folder, above the question of a video
            that has them.
    """
    entries = read_entries(require(file, "--questions", WHAT))
    found, words = NamedFiles(videos), NamedFiles(videos, SUBTITLES)
    spoken = {entry.video: _spoken(words.find(entry.video)) for entry in entries} if subtitles and videos else {}
    if subtitles and videos and not any(spoken.values()):
        raise UserError(
            f"{videos} has no subtitles (NAME.srt) of the {len(spoken)} videos. Give the folder that has both, or ask "
            "without: video_mme."
        )
    return [
        Question(entry.id, _prompt(entry, spoken.get(entry.video, "")), Video(found.find(entry.video)), entry.task_type)
        for entry in entries
    ]


def _prompt(entry: Entry, spoken: str) -> str:
    above = SUBTITLES_ABOVE.format(spoken) if spoken else ""
    return above + PROMPT.format("\n".join([entry.question, *entry.options]))


def _spoken(path: Path) -> str:
    """Return the words of a file of subtitles (SubRip); "" if there is none."""
    if not path.is_file():
        return ""
    blocks = re.split(r"\n\s*\n", read_text(path).replace("\r\n", "\n"))
    lines = (line for block in blocks for line in block.strip().split("\n")[2:])  # after the number and the times
    return "\n".join(filter(None, (re.sub(r"<[^>]*>|\{\\[^}]*\}", "", line).strip() for line in lines)))


def read_entries(path: Path) -> list[Entry]:
    """Read the questions in any of their formats.

    Raises:
        UserError: the file cannot be read, a field is missing, or an id occurs twice.
    """
    entries = [_entry(record, place) for place, record in _records(path)]
    require_unique(path, [entry.id for entry in entries], "with the id {!r}", "Give the official file")
    return entries


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    if path.suffix == ".parquet":
        yield from ((f"{path}, row {row}", record) for row, record in enumerate(_read_parquet(path)))
    elif path.suffix == ".jsonl":
        yield from read_lines(path)
    else:
        for index, record in enumerate(read_json_as(path, list, f"a list, as {WHAT} is")):
            place = f"{path}, entry {index}"
            if isinstance(record, dict) and "questions" in record:
                yield from _of_video(record, place)
            else:
                yield place, record


def _of_video(video: Record, place: str) -> Iterator[tuple[str, Record]]:
    """Yield the questions about a video of the official JSON as rows of the table."""
    shared = {name: field(video, nested, str, place) for name, nested in NESTED.items()}
    shared["video_id"] = field(video, "video_id", str, place)
    name = "video_subcategory" if "video_subcategory" in video else "video_sub_category"
    shared["sub_category"] = field(video, name, str, place)
    for number, question in enumerate(field(video, "questions", list, place), start=1):
        inner = f"{place}, question {number}"
        yield inner, shared | {"options": field(question, "choices", list, inner)} | question


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    with optional_import("Reading a .parquet file", "eval"):
        from pyarrow import ArrowException, parquet
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise UserError(f"Cannot read {path} as a table ({one_line(error)}).") from None


def _entry(record: Record, place: str) -> Entry:
    options = field(record, "options", list, place)
    answer = field(record, "answer", str, place)
    if len(options) != len(LETTERS) or not all(isinstance(option, str) for option in options):
        raise UserError(f'{place}: "options" must be the words of four options, "A. …" to "D. …", got {options!r:.80}.')
    if answer not in LETTERS:
        raise UserError(f'{place}: "answer" is {answer!r}, not one of the letters A to D.')
    texts = ("question_id", "duration", "domain", "sub_category", "task_type", "question")
    id_, duration, domain, sub_category, task_type, question = (field(record, name, str, place) for name in texts)
    video = field(record, "videoID" if "videoID" in record else "video_id", str, place)
    return Entry(id_, video, duration, domain, sub_category, task_type, question, tuple(options), answer)


def read_known(questions: Sequence[Question], annotations: Path | None) -> list[Entry]:
    """Return the entry of each question."""
    path = require(annotations, "--annotations", WHAT)
    entries = {entry.id: entry for entry in read_entries(path)}
    return align(questions, [str(question.id) for question in questions], entries, path)


def read_letter(text: str) -> str | None:
    """Read an answer as the official scorer does: the first of the letters A to D, anywhere; None: there is none."""
    for phrase in PHRASES:
        text = text.replace(phrase, "")
    found = re.search("[ABCD]", text)
    return found[0] if found else None


def mark(question: Question, text: str, known: Entry) -> Mark:
    """Mark an answer by the letter that the official scorer reads."""
    letter = read_letter(text)
    return Mark(question, known, text, letter, float(letter == known.answer), known.answer)


def aggregate(marks: Sequence[Mark]) -> Scores:
    """Compute the accuracy, also as the official scorer does, and by duration, domain, sub-category and task."""
    right, groups = [row.credit for row in marks], [row.question.image_name for row in marks]
    scores: Scores = {("accuracy",): mean_score(right, groups)}
    kinds = {name: [getattr(row.known, name) for row in marks] for name in ("duration", "domain", "task_type")}
    read = [place for place, row in enumerate(marks) if row.read is not None]
    if read:
        readable, sources = [right[place] for place in read], [groups[place] for place in read]
        durations = [kinds["duration"][place] for place in read]
        scores["accuracy_official",] = mean_score(readable, sources)
        scores |= mean_scores_by("accuracy_official_by_duration", durations, readable, sources)
    kinds["sub_category"] = [row.known.sub_category for row in marks]
    for name, values in kinds.items():
        scores |= mean_scores_by(f"accuracy_by_{name}", values, right, groups)
    return scores


def floors(questions: Sequence[Question], known: Sequence[Entry]) -> dict[str, Predictions]:
    """Return the floor that always gives the most frequent right letter of these questions."""
    return most_frequent_letter_floor((entry.answer for entry in known), questions)


def _benchmark(subtitles: bool) -> Benchmark:
    how = "with all subtitles of the video" if subtitles else "without subtitles"
    return Benchmark(
        protocol=lambda questions: PROTOCOL.format(subtitles=how),
        load_questions=partial(load_questions, subtitles=subtitles),
        known=read_known,
        mark=mark,
        aggregate=aggregate,
        medium="video",
        floors=floors,
        annotated=True,
    )


VIDEO_MME = _benchmark(subtitles=False)
VIDEO_MME_SUBTITLES = _benchmark(subtitles=True)
