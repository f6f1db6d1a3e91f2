"""A gaze that follows, measured: moving shapes, where RoIs lie, which setting is chosen, and the report."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch

pytest.importorskip("easy_vqa")

from eval.video.gaze import RESTARTS, choose, differences, main
from eval.video.gaze_measures import place_measures
from eval.video.moving_shapes import FRAMES, SIDE, make_clips, move
from sparse_vlm.data.easy_vqa import CLASSES
from tests.data.test_cut_outs import RGB


def test_the_shape_is_in_its_box_and_another_appears() -> None:
    clips = make_clips(4, "test", "large", None)
    assert [clip.speed for clip in clips] == [0.0, 0.02, 0.05, 0.1]
    for clip in clips:
        assert len(clip.frames) == len(clip.boxes) == len(clip.labels) == FRAMES
        assert len(set(clip.labels)) == 2
        for frame, box, label in zip(clip.frames, clip.boxes, clip.labels, strict=True):
            assert 0 <= min(box) <= max(box) <= 1
            inside = frame.crop([round(SIDE * side) for side in box])
            colours = {pixel for _, pixel in inside.getcolors(SIDE**2) or []}
            assert RGB[CLASSES[label].colour] in colours


def test_the_halves_have_other_shapes_and_photographs(photos: Path) -> None:
    halves = [make_clips(2, split, "small", photos / "train") for split in ("train", "test")]
    assert halves[0][0].frames[0].tobytes() != halves[1][0].frames[0].tobytes()
    again = make_clips(2, "test", "small", photos / "train")
    assert again == halves[1]


def test_a_thing_moves_straight_and_stays_inside() -> None:
    places = move((28, 8), 0.1, 60, random.Random(0))
    assert all(0 <= left <= SIDE - 28 and 0 <= top <= SIDE - 8 for left, top in places)
    steps = [((b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2) ** 0.5 for a, b in pairwise(places)]
    assert sorted(steps)[30] == pytest.approx(0.1 * SIDE, abs=1.5)
    assert len(set(move((28, 8), 0.0, 5, random.Random(0)))) == 1


def test_places_of_rois() -> None:
    rois = torch.tensor([[[0.0, 0.0, 0.2, 0.2], [0.8, 0.8, 1.4, 1.0]]])
    measured = place_measures(rois, torch.tensor([[0.0, 0.0, 0.2, 0.4]]))
    assert measured["on shape"].tolist() == [0.5]
    assert measured["outside"].tolist() == [0.5]
    torch.testing.assert_close(measured["distance"], torch.tensor([(0.1 + (1.0**2 + 0.7**2) ** 0.5) / 2]))
    torch.testing.assert_close(measured["size"], torch.tensor([0.2]))


def test_the_share_with_the_best_accuracy_is_chosen() -> None:
    rows = [
        {"restart": share, "repeats": 2, "accuracy": (share == 0.25) + small, "cosine with teacher": share}
        for share in RESTARTS
        for small in (0, 1)
    ]
    assert (choose(rows).restart, choose(rows).repeats) == (0.25, 2)
    for row in rows:
        del row["accuracy"]
    assert choose(rows).restart == RESTARTS[-1]


def test_differences_leave_out_the_first_frame() -> None:
    followed = {"accuracy": torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]]), "cosine with teacher": torch.ones(2, 3)}
    independent = {name: torch.zeros(2, 3) for name in followed}
    found = differences(followed, independent)
    assert found["accuracy"]["difference"] == 0.75
    assert found["cosine with teacher"]["interval_95"] == [1.0, 1.0]


@pytest.mark.parametrize("with_frames", [False, True])
def test_the_command(clip_dir: Path, student_dir: Path, photos: Path, tmp_path: Path, with_frames: bool) -> None:
    output = tmp_path / "gaze.json"
    arguments = ["--teacher", str(clip_dir), "--encoder", str(student_dir), "--output", str(output), "--clips", "2"]
    if with_frames:
        arguments += ["--photographs", str(photos / "train"), "--frames", str(photos / "test/blue"), "--tokens", "4"]
    assert main(arguments) == 0
    result = json.loads(output.read_text())
    assert result["tokens"] == (4 if with_frames else 5)
    alone = [row for row in result["test"] if row["restart"] == 1 and row["repeats"] == 4]
    assert all(row["cosine with independent"] == pytest.approx(1, abs=1e-5) for row in alone)
    assert all(0 <= row["accuracy"] <= 1 for row in result["choice"])
    assert ("frames" in result) == with_frames
    if with_frames:
        assert all(row["seconds"] > 0 for row in result["frames"])
    assert "restart 1 is independent" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").stat().st_size > 0


def test_there_must_be_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--teacher", "x", "--encoder", str(tmp_path), "--output", str(tmp_path / "gaze.json")]
    assert main([*arguments, "--clips", "0"]) == 2
    assert "--clips must be at least 1, got 0" in capsys.readouterr().err
