"""The clips and their questions, the scores, and the whole study on a tiny model."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sparse_vlm.data.easy_vqa import COLOURS, SHAPES
from sparse_vlm.errors import UserError
from sparse_vlm.videos.files import VideoFile
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.videos.processor import VideoOptions
from train.language.data import make_data
from train.language.data_arguments import DataArguments
from train.language.vlm import ModelArguments, load
from train.stages.stage import StageArguments
from train.studies.videos.__main__ import Setting, main, parse_settings
from train.studies.videos.clips import (
    FRAMES,
    PATH,
    RATE,
    WAYS,
    draw_clip,
    kind_of,
    record,
    without_video,
    write_clip,
)
from train.studies.videos.measure import majority, outcomes, score

CUT_OUTS = {(shape, colour): [Image.new("RGBA", (9, 6), colour)] for shape in SHAPES for colour in COLOURS}


def centre(frame: Image.Image) -> np.ndarray:
    """(x, y) of the pixels that differ from the corner's."""
    pixels = np.asarray(frame).astype(int)
    rows, columns = np.nonzero(np.abs(pixels - pixels[0, 0]).sum(-1) > 60)
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize("seed", range(8))
def test_a_shape_moves_where_the_answer_says(seed: int) -> None:
    clip = draw_clip(CUT_OUTS, True, random.Random(seed))
    ((kind, question, way),) = clip.questions
    assert (len(clip.frames), kind, kind_of(question)) == (FRAMES, "direction", "direction")
    moved = centre(clip.frames[-1]) - centre(clip.frames[0])
    np.testing.assert_allclose(moved, np.array(WAYS[way]) * PATH, atol=1)
    assert np.abs(centre(clip.frames[0]) - 32).max() < 5  # whichever way it moves


def test_shapes_appear_in_the_order_and_number_of_the_answers() -> None:
    numbers = Counter()
    for seed in range(30):
        clip = draw_clip(CUT_OUTS, False, random.Random(seed))
        (_, _, first), (_, _, number) = clip.questions
        shown = [{colour for _, colour in frame.getcolors(4096) or []} for frame in clip.frames]
        assert len(shown[0]) == 1  # empty
        assert len(shown[-1]) - 1 == ("one", "two", "three").index(number) + 1
        (earliest,) = next(colours for colours in shown if len(colours) > 1) - shown[0]
        assert earliest == Image.new("RGB", (1, 1), first).getpixel((0, 0))
        assert shown[2 * FRAMES // 3] == shown[-1]  # three frames see all shapes
        numbers[number] += 1
    assert len(numbers) == 3


def test_a_clip_and_its_record_survive_writing(tmp_path: Path) -> None:
    clip = draw_clip(CUT_OUTS, False, random.Random(1))
    write_clip(tmp_path / "0.mp4", clip.frames)
    video = VideoFile(tmp_path / "0.mp4")
    assert (len(video), round(video.rate)) == (FRAMES, RATE)
    (last,) = video.frames([FRAMES - 1])
    assert np.abs(np.asarray(last.image).astype(int) - np.asarray(clip.frames[-1]).astype(int)).mean() < 4
    made = record("c", "0.mp4", clip)
    assert made["conversations"][0]["value"] == "<video>\nwhich color appears first?"
    assert "<video>" not in json.dumps(without_video(made))


def test_scores_are_shares_by_kind_and_floors_answer_by_kind() -> None:
    asked = [("which way does it move?", "up"), ("which color appears first?", "red"), ("which way is it?", "left")]
    found = score(asked, [True, False, False])
    assert found["by_kind"] == {
        "direction": {"accuracy": 0.5, "questions": 2},
        "order": {"accuracy": 0, "questions": 1},
    }
    assert found["accuracy"] == pytest.approx(1 / 3)
    train = [("which way a?", "left"), ("which way b?", "left"), ("which way c?", "up"), ("which col?", "red")]
    assert majority(train, asked)["by_kind"]["direction"]["accuracy"] == 0.5
    assert majority(train, asked)["by_kind"]["order"]["accuracy"] == 1


@pytest.mark.slow
def test_an_answer_counts_exactly_if_greedy_decoding_gives_it(worded_vlm_dir: Path, tmp_path: Path) -> None:
    args = StageArguments(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False)
    model, processor = load(ModelArguments(str(worded_vlm_dir)), args)
    loaded: Any = model.eval()
    clips = [draw_clip(CUT_OUTS, False, random.Random(number)) for number in range(2)]
    for number, clip in enumerate(clips):
        write_clip(tmp_path / f"{number}.mp4", clip.frames)
    samples = [record(str(number), f"{number}.mp4", clip) for number, clip in enumerate(clips)]
    (tmp_path / "asked.json").write_text(json.dumps(samples))
    data_args = DataArguments(
        str(tmp_path / "asked.json"), str(tmp_path), independent_turns=True, fps=RATE, max_frames=3
    )
    data = make_data(data_args, args, model, processor, language=True)
    optimizer = torch.optim.Adam(
        loaded.parameters(), 1e-2
    )  # a random model ends no answer, so it learns those of a clip
    batch = data.collator([data.training[0]])
    for _ in range(60):
        logits = loaded(**{name: value for name, value in batch.items() if "labels" not in name}).logits
        F.cross_entropy(logits.flatten(0, -2), batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()

    shown = VideoOptions(fps=RATE, max_frames=3)
    expected = [
        answer(loaded, processor, None, text, 8, videos=[tmp_path / f"{number}.mp4"], video_options=shown) == right
        for number, clip in enumerate(clips)
        for _, text, right in clip.questions
    ]
    assert list(outcomes(loaded, data)) == expected
    assert any(expected)
    assert not all(expected)


@pytest.mark.parametrize(
    ("text", "message"), [("12", "FRAMESxTOKENS"), ("5x9,5x9", "twice"), ("40x4", "A clip has 36"), ("0x4", "frames")]
)
def test_bad_settings_are_sentences(text: str, message: str) -> None:
    assert parse_settings("12x4,1x36") == [Setting(12, 4), Setting(1, 36)]
    with pytest.raises(UserError, match=message):
        parse_settings(text)


@pytest.mark.slow
def test_the_whole_study(vlm_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["--output_dir", str(out), "--model", str(vlm_dir), "--settings", "3x4,1x9", "--steps", "1"]
    words += ["--learning_rates", "1e-3,1e-2", "--validation", "4", "--test", "4"]
    assert main(words) == 0
    report = json.loads((out / "report.json").read_text())
    assert [(row["frames"], row["tokens"], row["total"]) for row in report["models"]] == [(3, 4, 12), (1, 9, 9)]
    assert set(report["models"][0]["scores"]["by_kind"]) == {"direction", "order", "count"}
    assert report["choice"]["validation"].keys() == {"0.001", "0.01"}
    assert "asked without the clip" in (out / "report.md").read_text()
    assert main(words) == 0
    assert "already done" in capfd.readouterr().out
    assert main([*words, "--seed", "1"]) == 2
