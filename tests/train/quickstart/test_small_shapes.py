"""Canvases with small shapes: boxes hold one shape of the answer's colour, wordings fit, the splits stay apart."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("easy_vqa")

from sparse_vlm.data.conversations.samples import parse_sample
from sparse_vlm.data.cut_outs import CutOuts, cut_out_shapes
from sparse_vlm.data.easy_vqa import SHAPES, load_questions, split_folder
from tests.data.test_cut_outs import RGB
from train.quickstart.small_shapes import CANVAS, SMALL_SIDES, draw_canvas, main, place_squares


@pytest.fixture(scope="module")
def cut_outs() -> CutOuts:
    return cut_out_shapes(load_questions("test"), split_folder("test") / "images")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    assert main(["--output_dir", str(folder), "--train", "4", "--validation", "3", "--test", "2"]) == 0
    return folder


def _read(file: Path) -> list:
    return json.loads(file.read_text())


def test_a_box_holds_one_small_shape(cut_outs: CutOuts) -> None:
    order = random.Random(0)
    for _ in range(20):
        canvas, small = draw_canvas(cut_outs, order)
        assert canvas.size == (CANVAS, CANVAS)
        assert [shown.shape for shown in small] == list(SHAPES)
        assert len({shown.colour for shown in small}) == len(SHAPES)
        for shown in small:
            left, top, right, bottom = (round(side * CANVAS) for side in shown.box)
            inside = canvas.crop((left, top, right, bottom))
            pixels = {pixel for _, pixel in inside.getcolors(CANVAS**2) or []}
            assert set(RGB.values()) & pixels == {RGB[shown.colour]}
            background = max(canvas.getcolors(CANVAS**2) or [])[1]
            found = Image.new("L", inside.size)
            found.putdata([255 * (pixel != background) for pixel in inside.get_flattened_data()])
            box = found.getbbox()
            assert box is not None
            assert SMALL_SIDES[0] - 2 <= max(box[2] - box[0], box[3] - box[1]) <= SMALL_SIDES[1]


def test_squares_do_not_overlap() -> None:
    squares = place_squares([90, 90, 90, 110, 110, 110], random.Random(3))
    drawn = Image.new("L", (CANVAS, CANVAS))
    for left, top, side in squares:
        drawn.paste(255, (left, top, left + side, top + side))
    assert drawn.histogram()[255] == 3 * 90**2 + 3 * 110**2


@pytest.mark.slow
def test_conversations_ask_in_words_and_with_regions(data: Path) -> None:
    records = _read(data / "instruct.json")
    assert [record["image"] for record in records] == [f"{number}.png" for number in range(4)]
    for index, record in enumerate(records):
        assert len(parse_sample(record, index).regions) == 3
        values = [turn["value"] for turn in record["conversations"]]
        assert values[0].startswith("<image>\n")
        assert sum(value.count("<image>") for value in values) == 1
        questions = [value.removeprefix("<image>\n") for value in values[::2]]
        assert len(record["regions"]) == sum(question.count("<region>") for question in questions) == 3
        wordings = {f"what color is the small {shape}?" for shape in SHAPES}
        assert set(questions) == wordings | {"what color is the small shape in <region>?"}
        boxes = iter(record["regions"])
        with Image.open(data / "train" / record["image"]) as canvas:
            for question, answer in zip(questions, values[1::2], strict=True):
                if "<region>" in question:
                    box = [round(side * CANVAS) for side in next(boxes)]
                    assert RGB[answer] in {pixel for _, pixel in canvas.crop(box).getcolors(CANVAS**2) or []}


@pytest.mark.slow
def test_questions_have_the_wordings_of_the_conversations(data: Path) -> None:
    trained = {
        turn["value"].removeprefix("<image>\n") for r in _read(data / "instruct.json") for turn in r["conversations"]
    }
    for name, canvases in (("validation", 3), ("test", 2)):
        questions = _read(data / f"{name}.json")
        assert len(questions) == 3 * canvases
        assert {q[wording] for q in questions for wording in ("in_words", "in_region")} <= trained
        assert {q["image"] for q in questions} == {file.name for file in (data / name).iterdir()}


@pytest.mark.slow
def test_the_parts_depend_on_the_seed_alone(data: Path, tmp_path: Path) -> None:
    for seed, same in ((0, True), (1, False)):
        folder = tmp_path / str(seed)
        words = ["--output_dir", str(folder), "--train", "1", "--validation", "1", "--test", "2", "--seed", str(seed)]
        assert main(words) == 0
        assert ((folder / "test.json").read_bytes() == (data / "test.json").read_bytes()) is same
        assert ((folder / "test" / "1.png").read_bytes() == (data / "test" / "1.png").read_bytes()) is same
    assert _read(tmp_path / "0" / "instruct.json") == _read(data / "instruct.json")[:1]


def test_a_part_without_canvases_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output_dir", str(tmp_path), "--test", "0"]) == 2
    assert capsys.readouterr().err == "error: --test must be at least 1, got 0.\n"
    assert not list(tmp_path.iterdir())
