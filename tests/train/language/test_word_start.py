"""--word_start: least squares from visual tokens to the words of their captions."""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sparse_vlm.data.conversations.dataset import ConversationDataset
from sparse_vlm.data.conversations.encoding import IGNORE
from sparse_vlm.vlm.build import build_vlm
from tests.train.language.test_align import changed, flags
from tests.train.language.test_instruct import INTERRUPTED
from train import align
from train.language import word_start
from train.language.data import StageData, make_data
from train.language.data_arguments import DataArguments
from train.language.vlm import ModelArguments, load
from train.language.word_start import LeastSquares, start_from_words
from train.stages.log import read_log
from train.stages.stage import StageArguments

Loaded = tuple[Any, StageData, StageArguments]


def opened(vlm_dir: Path, data_dir: Path, tmp_path: Path, file: str = "captions.json", **options: Any) -> Loaded:
    args = StageArguments(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, disable_tqdm=True, per_device_train_batch_size=4
    )
    model, processor = load(ModelArguments(str(vlm_dir)), args)
    data_args = DataArguments(str(data_dir / file), str(data_dir), **options)
    return model, make_data(data_args, args, model, processor, language=False), args


def explained(caplog: pytest.LogCaptureFixture) -> list[float]:
    """Return the explained share that the log reports for each word start."""
    return [float(found) / 100 for found in re.findall(r"explain (.*) % of", caplog.text)]


def test_running_sums_give_the_least_squares_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, generator=generator)
    targets = features @ torch.randn(6, 3, generator=generator) + 5 + torch.randn(50, 3, generator=generator)
    problem = LeastSquares(6, 3)
    for piece in (slice(0, 20), slice(20, 50)):
        problem.add(features[piece], targets[piece])
    weight, bias, share = problem.solve(ridge=0)
    rows = torch.cat([features, torch.ones(50, 1)], dim=1).double()
    expected = torch.linalg.lstsq(rows, targets.double()).solution
    torch.testing.assert_close(weight, expected[:-1].T)
    torch.testing.assert_close(bias, expected[-1])
    left = (targets.double() - rows @ expected).square().sum()
    assert share == pytest.approx(1 - (left / (targets - targets.mean(0)).double().square().sum()).item())


def test_a_constant_zero_feature_is_harmless() -> None:
    problem = LeastSquares(2, 1)
    problem.add(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[3.0], [5.0]]))
    weight, bias, _ = problem.solve(ridge=1e-9)
    assert weight[0].tolist() == pytest.approx([2, 0], abs=1e-6)
    assert bias.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("projector", ["mlp2x_gelu", "linear"])
def test_tokens_approach_the_words_as_logged(
    encoder_dir: Path,
    llm_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    projector: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "train")
    build_vlm(encoder_dir, llm_dir, tmp_path / "vlm", projector=projector)
    model, data, args = opened(tmp_path / "vlm", data_dir, tmp_path)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    start_from_words(model, data, 100, args)
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if re.search(r"multi_modal_projector\.linear_", name)}
    items = [data.training[index] for index in range(6)]
    with torch.no_grad():
        projected = model.model.multi_modal_projector(
            torch.stack(model.model.encode_images(torch.stack([i["images"][0] for i in items])))
        )
        # the caption "It is red." without the end-of-turn token, repeated
        tokenizer = data.training.chat.tokenizer
        captions = [tokenizer(e.sample.turns[-1][1], add_special_tokens=False).input_ids for e in data.training.entries]
        width = projected.shape[1]
        words = torch.tensor([[c[k % len(c)] for k in range(width)] for c in captions])
        targets = model.get_input_embeddings()(words)
    share = 1 - (projected - targets).square().sum() / (targets - targets.mean((0, 1))).square().sum()
    assert explained(caplog) == [pytest.approx(share.item(), abs=1e-3)]
    assert share > 0.3


@pytest.mark.slow
def test_the_stage_starts_from_words_once_and_a_resumed_run_does_not(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"word_start": 4, "max_steps": 4, "save_steps": 2, "learning_rate": 1e-3}
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "whole", **options)) == 0
    assert changed(vlm_dir, tmp_path / "whole") == {"multi_modal_projector"}

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(align.vlm, "write_result", interrupted)
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "cut", **options)) == INTERRUPTED
    monkeypatch.undo()
    assert len(explained(caplog)) == 2
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "cut", **options)) == 0
    assert len(explained(caplog)) == 2
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert len(read_log(tmp_path / "cut" / "log.jsonl")) == 4


def test_word_start_accepts_cached_tokens_and_text_only_samples(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    starts = []
    for options in ({}, {"cache_visual_tokens": str(tmp_path / "cache")}):
        model, data, args = opened(vlm_dir, data_dir, tmp_path, "chats.json", **options)
        start_from_words(model, data, 100, args)
        starts.append(model.model.multi_modal_projector[-1].weight)
    torch.testing.assert_close(*starts, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_captions_without_words_are_left_out(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    """Answers of control tokens alone have no words."""
    projectors = []
    for without in (False, True):
        model, data, args = opened(vlm_dir, data_dir, tmp_path)
        control = next(iter(data.training.chat.control_ids))
        items = [dict(data.training[index]) for index in range(6)]
        if without:
            targets = [token if token == IGNORE else control for token in items[0]["row"].targets]
            items[0]["row"] = replace(items[0]["row"], targets=targets)
        else:
            items = items[1:]
        start_from_words(model, replaced(data, items), 100, args)
        projectors.append(model.model.multi_modal_projector[-1].weight)
    torch.testing.assert_close(*projectors)


def replaced(data: StageData, items: list[dict[str, Any]]) -> StageData:
    training: Any = _Listed(data.training, items)
    return replace(data, training=training)


class _Listed:
    """Wrap items as a data set."""

    def __init__(self, dataset: ConversationDataset, items: list[dict[str, Any]]) -> None:
        self.chat, self.items = dataset.chat, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_start": -1}, "--word_start must lie in [0, inf), got -1."),
        ({"word_start": 3, "data_path": "text.json"}, "None of the 3 samples of --word_start has an image"),
    ],
)
def test_an_impossible_word_start_is_a_one_line_error(
    vlm_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "data_path" in options:
        options = options | {"data_path": data_dir / options["data_path"]}
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "out", **options)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_zero3_is_refused_before_anything_moves(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, args = opened(vlm_dir, data_dir, tmp_path)
    monkeypatch.setattr(word_start, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(align.UserError, match=r"use train/configs/deepspeed/zero2\.json"):
        start_from_words(model, data, 4, args)
