"""Zero-shot evaluation with the real clip-benchmark, on easy-VQA in its dataset format."""

import json
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from eval.encoders import zero_shot
from eval.encoders.clip_benchmark import compare, main
from sparse_vlm.bootstrap import bootstrap_from, open_teacher
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import open_image

pytest.importorskip("clip_benchmark")
pytestmark = [  # clip-benchmark's call of webdataset does not close its files
    pytest.mark.filterwarnings("ignore:WebDataset.shardshuffle"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def student_dir(clip_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("student") / "encoder"
    bootstrap_from(open_teacher(str(clip_dir)), tokens=5, repeats=1, stem_channels=8)[0].save_pretrained(directory)
    return directory


def write_set(folder: Path, samples: list[tuple[Image.Image, str, object]]) -> Path:
    """Write a dataset of one shard: images with a "cls" or a "txt"."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("1")
    with webdataset.TarWriter(str(folder / "test" / "0.tar")) as writer:
        for index, (image, kind, value) in enumerate(samples):
            writer.write({"__key__": f"{index:04d}", "png": image, kind: value})
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of easy-VQA's test images whose class is known, with 24 classes."""
    labels = zero_shot.easy_vqa_images("test")
    samples = [(open_image(path), "cls", int(value)) for path, value in zip(labels.paths, labels.values, strict=True)]
    folder = write_set(tmp_path_factory.mktemp("sets") / "shapes", samples)
    (folder / "classnames.txt").write_text("\n".join(labels.classes))
    (folder / "zeroshot_classification_templates.txt").write_text("{c}\n")
    return folder


def test_classification_agrees_with_our_own_evaluation(clip_dir: Path, student_dir: Path, shapes: Path) -> None:
    ours = zero_shot.compare(str(clip_dir), student_dir)
    results = compare(str(clip_dir), student_dir, [shapes])["shapes"]
    assert results["teacher"]["acc1"] == pytest.approx(ours["teacher"])
    assert results["student"]["acc1"] == pytest.approx(ours["student"])
    assert results["student"].keys() == {"acc1", "acc5", "mean_per_class_recall"}


def test_retrieval(clip_dir: Path, student_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colours = ["red", "lime", "blue", "white", "black", "gray", "teal", "navy", "pink", "gold", "cyan", "plum"]
    samples = [(Image.new("RGB", (32, 32), colour), "txt", f"a {colour} square\n{colour}") for colour in colours]
    folder = write_set(tmp_path / "colours", samples)
    (folder / "dataset_type.txt").write_text("retrieval")
    arguments = ["--teacher", str(clip_dir), "--encoder", str(student_dir), "--datasets", str(folder)]
    assert main([*arguments, "--dtype", "bfloat16", "--output", str(tmp_path / "r.json")]) == 0
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["dtype"] == "bfloat16"
    results = written["datasets"]["colours"]
    for metrics in results.values():
        assert metrics.keys() == {f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in (1, 5, 10)}
        assert 0 <= metrics["image_retrieval_recall@1"] <= metrics["image_retrieval_recall@10"] <= 1
    assert "image_retrieval_recall@5" in capsys.readouterr().out


def test_folders_that_are_not_datasets_are_refused(
    clip_dir: Path, student_dir: Path, shapes: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no test/nshards\.txt"):
        compare(str(clip_dir), student_dir, [tmp_path])
    classes = (shapes / "classnames.txt").rename(shapes / "hidden")
    with pytest.raises(UserError, match=r"needs classnames\.txt"):
        compare(str(clip_dir), student_dir, [shapes])
    classes.rename(shapes / "classnames.txt")
