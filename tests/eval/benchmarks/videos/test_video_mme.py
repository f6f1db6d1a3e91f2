"""Video-MME: its three formats, the official prompt and scores, subtitles."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from eval import intervals
from eval.benchmarks.videos import video_mme
from eval.report import make_report
from eval.scoring.protocol import Video
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import write_json, write_lines
from tests.eval.benchmarks.test_damaged_files import damaged

OPTIONS = ["A. Black.", "B. Gray.", "C. Green.", "D. Brown."]
PROMPT = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option.\nWhat color?\nA. Black.\nB. Gray.\nC. Green.\nD. Brown.\n"
    "The best answer is:"
)


def row(video: str, number: int, answer: str, duration: str = "short", task: str = "OCR Problems") -> dict[str, Any]:
    """A row of the table."""
    return {
        "video_id": video,
        "duration": duration,
        "domain": "Knowledge" if video == "001" else "Sports Competition",
        "sub_category": "Law",
        "url": "https://example.org",
        "videoID": f"id{video}",
        "question_id": f"{video}-{number}",
        "task_type": task,
        "question": "What color?",
        "options": OPTIONS,
        "answer": answer,
    }


ROWS = [
    row("001", 1, "A"),
    row("001", 2, "B", task="Counting Problem"),
    row("002", 1, "C", "long"),
    row("002", 2, "D", "long"),
    row("002", 3, "D", "long"),
]
NESTED = [
    {
        "video_id": "001",
        "duration_category": "short",
        "video_category": "Knowledge",
        "video_subcategory": "Law",
        "questions": [
            {"question_id": "001-1", "task_type": "OCR", "question": "What color?", "choices": OPTIONS, "answer": "A"},
            {"question_id": "001-2", "task_type": "OCR", "question": "What color?", "choices": OPTIONS, "answer": "D"},
        ],
    }
]


def values(rows: list[dict[str, Any]], answers: list[str], folder: Path) -> dict[tuple[str, ...], float]:
    file = write_lines(folder / "rows.jsonl", rows)
    scores = video_mme.VIDEO_MME.score(video_mme.load_questions(file, None), answers, file)
    return {path: score.value for path, score in scores.items()}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("B.", "B"),
        ("(C) Green.", "C"),
        ("The best answer is D", "D"),
        ("The correct answer is: B", "B"),
        ("The answer is A.", "A"),
        ("Answer: B", "A"),  # its own first letter: only the phrases of the official list are removed
        ("Best answer: C", "B"),  # the official list lacks a comma, so this phrase stays
        ("The best option is C", "C"),
        ("The answer D or A", "D"),
        ("Both", "B"),
        ("green", None),
        ("", None),
        ("it shows a person who walks past the green house on the left side of it", None),
        ("it shows a person who walks past the green house on the left side of D", "D"),
    ],
)
def test_answers_are_read_as_the_official_scorer_reads_them(text: str, letter: str | None) -> None:
    assert video_mme.read_letter(text) == letter


def test_scores(tmp_path: Path) -> None:
    found = values(ROWS, ["A", "B or C", "gray", "D", "A"], tmp_path)
    assert found == {
        ("accuracy",): 3 / 5,  # the unreadable answer is wrong
        ("accuracy_official",): 3 / 4,  # the official scorer does not count it
        ("accuracy_official_by_duration", "long"): 1 / 2,
        ("accuracy_official_by_duration", "short"): 1,
        ("accuracy_by_duration", "long"): 1 / 3,
        ("accuracy_by_duration", "short"): 1,
        ("accuracy_by_domain", "Knowledge"): 1,
        ("accuracy_by_domain", "Sports Competition"): 1 / 3,
        ("accuracy_by_task_type", "Counting Problem"): 1,
        ("accuracy_by_task_type", "OCR Problems"): 2 / 4,
        ("accuracy_by_sub_category", "Law"): 3 / 5,
    }
    unread = values(ROWS, ["gray"] * 5, tmp_path)
    assert unread["accuracy",] == 0
    assert ("accuracy_official",) not in unread  # there is nothing to divide by


def test_the_report_counts_unreadable_answers(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", ROWS)
    answers = [{"question_id": line["question_id"], "text": text} for line, text in zip(ROWS, "A?xD?", strict=True)]
    report = make_report("video_mme", write_lines(tmp_path / "a.jsonl", answers), questions=file)
    assert report["unreadable"] == 3
    assert report["floors"]["always D"]["accuracy"] == 2 / 5


def test_formats(tmp_path: Path) -> None:
    lines = video_mme.load_questions(write_lines(tmp_path / "rows.jsonl", ROWS), None)
    assert lines[0].text == PROMPT
    assert (lines[0].id, lines[0].image, lines[0].category) == ("001-1", Video(Path("id001.mp4")), "OCR Problems")
    assert video_mme.load_questions(write_json(tmp_path / "rows.json", ROWS), None) == lines
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert video_mme.load_questions(tmp_path / "rows.parquet", None) == lines
    nested = write_json(tmp_path / "nested.json", NESTED)
    of_videos = video_mme.load_questions(nested, None)
    assert [question.text for question in of_videos] == [PROMPT] * 2
    assert of_videos[0].image == Video(Path("001.mp4"))  # these files have no other name
    scores = video_mme.VIDEO_MME.score(of_videos, ["A", "A"], nested)
    assert scores["accuracy_by_domain", "Knowledge"].value == 0.5


def test_videos_are_found_in_folders(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "videos/data").mkdir(parents=True)
    for name in ("data/id001.MP4", "id001.srt"):
        (tmp_path / "videos" / name).touch()
    images = [question.image for question in video_mme.load_questions(file, tmp_path / "videos")]
    there = Video(tmp_path / "videos/data/id001.MP4")
    assert images == [there, there, *[Video(tmp_path / "videos/id002.mp4")] * 3]
    (tmp_path / "videos/id001.mkv").touch()
    with pytest.raises(UserError, match=r"2 files named id001: .*id001\.mkv and .*id001\.MP4|id001\.MP4 and .*mkv"):
        video_mme.load_questions(file, tmp_path / "videos")


def test_subtitles(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", ROWS)
    subtitles = video_mme.VIDEO_MME_SUBTITLES
    with pytest.raises(UserError, match=r"has no subtitles \(NAME\.srt\) of the 2 videos"):
        subtitles.load_questions(file, tmp_path)
    (tmp_path / "subtitle").mkdir()
    (tmp_path / "subtitle/id001.srt").write_text(
        '1\r\n00:00:00,000 --> 00:00:02,000\r\n<font color="#fff">Hi guys,</font>\r\n\r\n'
        "2\r\n00:00:02,000 --> 00:00:04,000\r\nI'm going\r\nto show you\r\n\r\n"
    )
    texts = [question.text for question in subtitles.load_questions(file, tmp_path)]
    above = "This video's subtitles are listed below:\nHi guys,\nI'm going\nto show you\n"
    assert texts == [above + PROMPT] * 2 + [PROMPT] * 3
    assert subtitles.score(subtitles.load_questions(file, None), ["A"] * 5, file)["accuracy",].value == 1 / 5
    assert "with all subtitles" in subtitles.protocol([])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": "E"}, "\"answer\" is 'E', not one of the letters A to D"),
        ({"options": OPTIONS[:3]}, "the words of four options"),
        ({"duration": 3}, '"duration" must be of type str'),
        ({"question_id": "001-2"}, "two questions with the id '001-2'"),
    ],
)
def test_bad_rows(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [ROWS[0] | change, *ROWS[1:]])
    with pytest.raises(UserError, match=said):
        video_mme.load_questions(file, None)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("no table")
    with pytest.raises(UserError, match=r"Cannot read .*rows\.parquet as a table"):
        video_mme.load_questions(tmp_path / "rows.parquet", None)
    with pytest.raises(UserError, match="must be a list, as Video-MME's questions"):
        video_mme.load_questions(write_json(tmp_path / "rows.json", {"a": 1}), None)
    file = write_lines(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(UserError, match=r"annotates 1 questions that were not asked, e\.g\. '001-1'"):
        video_mme.VIDEO_MME.score(video_mme.load_questions(file, None)[1:], ["A"] * 4, file)


@pytest.mark.parametrize("rows", [ROWS, NESTED])
def test_a_damaged_file_is_a_one_line_error(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 2)
    draw, sentences = random.Random(0), []
    for _ in range(60):
        (tmp_path / "rows.json").write_text(json.dumps(damaged(rows, draw)))
        try:
            questions = video_mme.load_questions(tmp_path / "rows.json", None)
            video_mme.VIDEO_MME.score(questions, ["A"] * len(questions), tmp_path / "rows.json")
        except UserError as error:
            sentences.append(str(error))
    assert len(sentences) > 20
    assert not any("\n" in sentence for sentence in sentences)
