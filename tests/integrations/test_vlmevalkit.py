"""The class for VLMEvalKit, with the real package if it is installed, else with the part of it that the class uses."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from eval.benchmarks import mmbench
from sparse_vlm.data import easy_vqa
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import open_image
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.chat import answer
from tests.eval.benchmarks.test_mmbench import ROWS, write_table

INSTALLED = importlib.util.find_spec("vlmeval") is not None
TYPES = {"MMBench_DEV_EN": "MCQ", "MME": "Y/N", "TextVQA_VAL": "VQA"}


class BaseModel:
    """What VLMEvalKit's base class does before and around `generate_inner`."""

    allowed_types = ("text", "image", "video")

    def __init__(self) -> None:
        self.dump_image_func: Any = None

    def set_dump_image(self, function: Any) -> None:
        self.dump_image_func = function

    def dump_image(self, line: Any, dataset: str | None) -> Any:
        return self.dump_image_func(line)

    def generate(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        assert all(part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)


@pytest.fixture(scope="module")
def adapter() -> Iterator[ModuleType]:
    """The module of the class."""
    name = "sparse_vlm.integrations.vlmevalkit"
    if INSTALLED:
        yield importlib.import_module(name)
        return
    parts = {part: ModuleType(part) for part in ("vlmeval", "vlmeval.vlm", "vlmeval.vlm.base", "vlmeval.dataset")}
    parts["vlmeval.vlm.base"].BaseModel = BaseModel  # type: ignore[attr-defined]
    parts["vlmeval.dataset"].DATASET_TYPE = lambda dataset: TYPES[dataset]  # type: ignore[attr-defined]
    parts["vlmeval"].vlm = parts["vlmeval.vlm"]  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for part, module in parts.items():
            patch.setitem(sys.modules, part, module)
        yield importlib.import_module(name)
    del sys.modules[name]


@pytest.fixture(scope="module")
def model(adapter: ModuleType, worded_vlm_dir: Path) -> Any:
    return adapter.SparseVLM(str(worded_vlm_dir), device="cpu", dtype="float32", max_new_tokens=6)


@pytest.fixture(scope="module")
def images() -> list[str]:
    folder = easy_vqa.split_folder("test") / "images"
    return [str(easy_vqa.image_path(folder, number)) for number in range(3)]


def image(path: str) -> dict[str, str]:
    return {"type": "image", "value": path}


def text(words: str, **more: str) -> dict[str, str]:
    return {"type": "text", "value": words, **more}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_answers_are_those_of_the_chat(model: Any, images: list[str], answerer: Answerer, count: int) -> None:
    message = [*map(image, images[:count]), text("what color is the shape?")]
    opened = [open_image(path) for path in images[:count]]
    expected = answer(answerer.model, answerer.processor, opened, "what color is the shape?", 6)
    assert model.generate(message, dataset="MME") == expected


def test_the_order_of_images_and_text_is_kept(model: Any, images: list[str], answerer: Answerer) -> None:
    seen: list[Any] = []
    apply = model._processor.apply_chat_template

    def remember(turns: Any, **options: Any) -> str:
        seen.append(turns)
        return str(apply(turns, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model._processor, "apply_chat_template", remember)
        model.generate([text("first"), image(images[0]), text("second"), image(images[1]), text("which?")])
    (turns,) = seen
    assert [part["type"] for part in turns[0]["content"]] == ["text", "image", "text", "image", "text"]


def test_roles_become_turns(model: Any, images: list[str]) -> None:
    turns = [
        {"role": "user", "content": [image(images[0]), text("what color?")]},
        {"role": "assistant", "content": [text("red")]},
        {"role": "user", "content": [text("what shape?")]},
    ]
    flat = [{**part, "role": turn["role"]} for turn in turns for part in turn["content"]]
    assert model.generate_inner(flat) == model.chat_inner(turns)


def test_a_number_of_visual_tokens(
    adapter: ModuleType, worded_vlm_dir: Path, images: list[str], answerer: Answerer
) -> None:
    few = adapter.SparseVLM(str(worded_vlm_dir), "cpu", "float32", max_new_tokens=6, visual_tokens=4)
    expected = answer(answerer.model, answerer.processor, open_image(images[0]), "what shape?", 6, visual_tokens=4)
    assert few.generate([image(images[0]), text("what shape?")]) == expected


def test_multiple_choice_is_asked_as_by_our_own_evaluation(model: Any, tmp_path: Path) -> None:
    assert model.use_custom_prompt("MMBench_DEV_EN")
    asked = mmbench.load_english(write_table(tmp_path / "mmbench.tsv", ROWS), None)
    model.set_dump_image(lambda line: ["a.png"])
    for row, question in zip(ROWS, asked, strict=True):
        line = {name: float("nan") if value == "nan" else value for name, value in row.items()}  # as pandas reads it
        assert model.build_prompt(line, "MMBench_DEV_EN") == [image("a.png"), text(question.text)]


def test_chinese_questions_get_the_chinese_instruction(model: Any) -> None:
    model.set_dump_image(lambda line: "a.png")
    *_, prompt = model.build_prompt({"question": "这是什么?", "A": "猫", "B": "狗", "C": None}, "MMBench_DEV_EN")
    assert prompt["value"] == "这是什么?\nA. 猫\nB. 狗\n请直接回答选项字母。"


def test_other_data_sets_and_users_keep_vlmevalkits_prompts(
    model: Any, adapter: ModuleType, worded_vlm_dir: Path
) -> None:
    assert not model.use_custom_prompt("MME")
    assert not model.use_custom_prompt("TextVQA_VAL")
    assert not model.use_custom_prompt(None)
    plain = adapter.SparseVLM(str(worded_vlm_dir), "cpu", "float32", llava_prompts=False)
    assert not plain.use_custom_prompt("MMBench_DEV_EN")


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ([{"type": "video", "value": "a.mp4"}, text("?")], "The data set D has a part of type 'video', but"),
        ([text("a", role="user"), text("b", role="assistant")], "does not end with the user's turn"),
        ([], "does not end with the user's turn"),
        ([text("a", role="critic"), text("b")], "a turn of 'critic', but sparse_vlm knows system, user, assistant"),
        ([image("absent.png"), text("?")], "The image absent.png does not exist"),
    ],
)
def test_bad_messages_are_one_sentence(model: Any, message: list[dict[str, str]], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        model.generate_inner(message, "D")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"visual_tokens": 0}, "at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, got 0"),
        ({"model_path": "absent"}, "no model directory absent"),
    ],
)
def test_bad_options_are_one_sentence(
    adapter: ModuleType, worded_vlm_dir: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        adapter.SparseVLM(**{"model_path": str(worded_vlm_dir), "device": "cpu", **options})


def test_scripts_run_with_the_class_registered(
    adapter: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    (tmp_path / "run.py").write_text(
        "import json, sys, vlmeval.vlm\n"
        "from pathlib import Path\n"
        "Path(sys.argv[1]).write_text(json.dumps([__name__, vlmeval.vlm.SparseVLM.__module__]))\n"
    )
    monkeypatch.setattr(sys, "argv", [])
    adapter.run([str(tmp_path / "run.py"), str(out)])
    assert json.loads(out.read_text()) == ["__main__", "sparse_vlm.integrations.vlmevalkit"]


@pytest.mark.parametrize("words", [[], ["--config", "c.json"], ["absent/run.py"]])
def test_a_missing_script_is_one_sentence(adapter: ModuleType, words: list[str]) -> None:
    with pytest.raises(UserError, match=r"The script is missing\. Usage|There is no script absent/run\.py"):
        adapter.run(words)
