"""`python -m eval.generate` about videos: the answers of chat, resumable, and clear about bad input."""

import json
from pathlib import Path

import pytest

from eval import score
from eval.answers import read_answers
from eval.benchmarks.videos import next_qa
from eval.generate import main
from eval.scoring.protocol import Video
from sparse_vlm.vlm import chat
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.videos.processor import VideoOptions
from tests.clips import corner_frame, grey_frames, write_clip

HEADING = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
ASKED = [("one", 0, "is there a circle?"), ("two", 0, "is there a circle?"), ("one", 1, "what color is it?")]
OPTIONS = ["--fps", "4", "--max_frames", "5", "--frame_tokens", "4", "--max_new_tokens", "6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, and three questions about them."""
    folder = tmp_path_factory.mktemp("next_qa")
    write_clip(folder / "one.mp4", grey_frames(20))
    write_clip(folder / "two.mp4", [corner_frame()] * 8)
    rows = [f"{video},20,64,48,{text},{qid},{qid},DC,yes,no,red,blue,grey" for video, qid, text in ASKED]
    (folder / "val.csv").write_text("\n".join([HEADING, *rows]) + "\n")
    return folder


def command(model: Path, folder: Path, answers: Path, *more: str) -> list[str]:
    paths = ["--model", str(model), "--questions", str(folder / "val.csv"), "--answers", str(answers)]
    return ["next_qa", *paths, "--device", "cpu", "--dtype", "float32", *more]


def test_answers_are_those_of_chat(vlm_dir: Path, answerer: Answerer, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    asked = command(vlm_dir, folder, file, "--videos", str(folder), *OPTIONS)
    assert main([*asked, "--limit", "1"]) == 0
    first = file.read_bytes()
    assert main(asked) == 0
    assert file.read_bytes().startswith(first)  # it went on
    answers = read_answers(file)
    assert [answer.question_id for answer in answers] == ["one_0", "two_0", "one_1"]
    shown = VideoOptions(4, 5, 4)
    for question, said in zip(next_qa.load_questions(folder / "val.csv", folder), answers, strict=True):
        assert isinstance(question.image, Video)
        alone = chat.answer(
            answerer.model,
            answerer.processor,
            None,
            question.text,
            6,
            videos=[question.image.path],
            video_options=shown,
        )
        assert said.text == alone
    assert answers[0].metadata["visual_tokens"] == 4
    assert answers[0].metadata["generation"] == {"max_new_tokens": 6, "fps": 4, "max_frames": 5}
    complete = file.read_bytes()
    assert main(asked) == 0
    assert file.read_bytes() == complete


def test_a_damaged_video_stops_the_run_which_then_resumes(
    vlm_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (folder / "two.mp4").read_bytes()
    for name in ("val.csv", "one.mp4"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "two.mp4").write_bytes(whole[:700])
    file = tmp_path / "answers.jsonl"
    asked = command(vlm_dir, tmp_path, file, "--videos", str(tmp_path), *OPTIONS)
    assert main(asked) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: The video ")
    assert error.endswith("two.mp4 cannot be read: it is not a video, cut short or damaged. Replace it.")
    kept = file.read_bytes()
    assert [answer.question_id for answer in read_answers(file)] == ["one_0", "one_1"]
    (tmp_path / "two.mp4").write_bytes(whole)
    assert main(asked) == 0
    assert set(kept.splitlines()) < set(file.read_bytes().splitlines())
    assert len(read_answers(file)) == 3


def test_the_report_says_how_videos_were_shown(vlm_dir: Path, folder: Path, tmp_path: Path) -> None:
    file, blind, report = tmp_path / "a.jsonl", tmp_path / "blind.jsonl", tmp_path / "report.json"
    assert main(command(vlm_dir, folder, file, "--videos", str(folder), *OPTIONS, "--timestamps")) == 0
    assert main(command(vlm_dir, folder, blind, "--no_image")) == 0
    files = ["--questions", str(folder / "val.csv"), "--answers", str(file), "--no_image_answers", str(blind)]
    assert score.main(["next_qa", *files, "--output", str(report)]) == 0
    content = json.loads(report.read_text())
    assert "fps 4.0, max_frames 5, timestamps True, at most 6 new tokens" in content["protocol"]
    assert content["visual_tokens"] == 4
    assert set(content["floors"]) == {"always A", "no_image"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "next_qa asks about videos: give their folder with --videos, or ask without with --no_image."),
        (["--images", "x"], "None of next_qa asks about images: leave out --images."),
        (["--visual_tokens", "4"], "write --frame_tokens for the tokens of a frame"),
        (["--no_image", "--fps", "1"], "--no_image asks without videos: leave out --fps"),
        (["--cuda_graphs"], "--cuda_graphs does not run videos: leave it out."),
        (["--fps", "0"], "fps must be a number above 0, got 0.0."),
        (["--max_frames", "0"], "max_frames must be a whole number, at least 1, got 0."),
        (["--frame_tokens", "0"], "at least 1, got 0."),
        (["--frame_tokens", "4000", "--videos", "."], "4000"),
        (["--max_frames", "4000", "--videos", "."], "Lower max_frames, fps or frame_tokens"),
    ],
)
def test_bad_options(
    options: list[str],
    said: str,
    vlm_dir: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    more = ["--fps", "1000"] if "4000" in options else []
    monkeypatch.setattr("sparse_vlm.vlm.answering.most_positions", lambda config: 150)
    monkeypatch.setattr("sparse_vlm.vlm.chat.most_positions", lambda config: 150)
    assert main(command(vlm_dir, folder, tmp_path / "a.jsonl", *options, *more)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


def test_missing_videos_are_named_and_counted_first(
    vlm_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path / "no model", folder, tmp_path / "a.jsonl", "--videos", str(tmp_path))) == 2
    assert capsys.readouterr().err == (
        f"error: The video {tmp_path}/one.mp4 does not exist; 2 of 2 videos are missing, e.g. also two.mp4. Check "
        "--videos.\n"
    )


def test_options_of_videos_are_refused_for_images(
    vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["easy_vqa", "--model", str(vlm_dir), "--answers", str(tmp_path / "a.jsonl")]
    assert main([*asked, "--fps", "2"]) == 2
    assert "are for benchmarks about videos: leave them out." in capsys.readouterr().err
    assert main([*asked, "--videos", "x"]) == 2
    assert "None of easy_vqa asks about videos: leave out --videos." in capsys.readouterr().err


def test_frames_are_counted_only_if_the_most_do_not_fit(
    vlm_dir: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video of 5 frames fits although 500 would not."""
    for module in ("answering", "chat"):
        monkeypatch.setattr(f"sparse_vlm.vlm.{module}.most_positions", lambda config: 400)
    shown = ["--fps", "2.5", "--max_frames", "500", "--frame_tokens", "4", "--max_new_tokens", "6"]
    assert main(command(vlm_dir, folder, tmp_path / "a.jsonl", "--videos", str(folder), *shown)) == 0
