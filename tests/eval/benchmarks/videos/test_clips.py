"""Videos of benchmarks: files, parts of files, and folders of frames."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from eval.benchmarks.videos.clips import FRAMES_PER_SECOND, count_frames, read_clip
from eval.scoring.protocol import Video
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.videos.answering import VideoAnswerer
from sparse_vlm.vlm.videos.processor import VideoOptions
from tests.clips import grey_frames, write_clip


@pytest.fixture
def videos(answerer: Answerer) -> VideoAnswerer:
    return VideoAnswerer(answerer.model, answerer.processor, 4, video_options=VideoOptions(fps=5, max_frames=7))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine frames, three a second, of different grey values."""
    for number in range(9):
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(tmp_path / f"{number + 1:05d}.png")
    (tmp_path / "notes.txt").touch()
    return tmp_path


def test_a_file_and_a_part_of_it(videos: VideoAnswerer, tmp_path: Path) -> None:
    file = write_clip(tmp_path / "a.mp4", grey_frames(20))  # two seconds
    whole, part = Video(file), Video(file, (1, 1.6))
    assert (len(read_clip(whole, videos)), len(read_clip(part, videos))) == (7, 3)
    assert (count_frames(whole, videos), count_frames(part, videos)) == (7, 3)


def test_a_folder_of_frames(videos: VideoAnswerer, folder: Path) -> None:
    assert FRAMES_PER_SECOND == 3
    whole, part = Video(folder), Video(folder, (1, 2))
    clip, shown = read_clip(whole, videos), read_clip(part, videos)
    assert (len(clip), count_frames(whole, videos)) == (7, 7)
    assert (len(shown), count_frames(part, videos)) == (3, 3)
    every = VideoAnswerer(videos.model, videos.processor, 4, video_options=VideoOptions(fps=9, max_frames=20))
    assert torch.equal(shown.pixel_values, read_clip(whole, every).pixel_values[3:6])
    assert shown.metadata.timestamps == pytest.approx([0, 1 / 3, 2 / 3])


def test_bad_folders(videos: VideoAnswerer, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no frame from 4 to 5 s: it lasts 3\.0 s"):
        read_clip(Video(folder, (4, 5)), videos)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no images: it cannot be a video\. Replace it"):
        read_clip(Video(tmp_path / "empty"), videos)
