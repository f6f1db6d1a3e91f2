"""Batches on a real tiny VLM: padding, mixing, independence and the blank image do not change the numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from sparse_vlm.data.conversations.collate import PACKINGS, ConversationCollator
from sparse_vlm.data.conversations.dataset import ConversationDataset
from sparse_vlm.data.conversations.encoding import encode
from sparse_vlm.data.conversations.samples import parse_sample
from sparse_vlm.errors import UserError
from tests.vlm.language.test_families import FAMILIES
from train.language.data import PACKABLE, make_data
from train.language.data_arguments import DataArguments
from train.language.order import LengthGroups
from train.language.trainer import ConversationTrainer
from train.language.vlm import ModelArguments, load, vlm_groups
from train.stages.stage import StageArguments, set_trainable


@pytest.fixture(scope="module")
def loaded(vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, ProcessorMixin]:
    args = StageArguments(output_dir=str(tmp_path_factory.mktemp("out")), use_cpu=True, bf16=False)
    model, processor = load(ModelArguments(str(vlm_dir)), args)
    return model.eval(), processor


def data(
    loaded: tuple[PreTrainedModel, ProcessorMixin], folder: Path, file: str, *, language: bool = True, **options: bool
) -> tuple[ConversationDataset, ConversationCollator]:
    args = StageArguments(output_dir="unused", use_cpu=True, bf16=False)
    data_args = DataArguments(str(folder / file), str(folder), **options)
    made = make_data(data_args, args, *loaded, language=language)
    return made.training, made.collator


@pytest.mark.slow
@torch.no_grad()
def test_a_mixed_batch_equals_its_samples_alone(loaded: tuple[PreTrainedModel, ProcessorMixin], data_dir: Path) -> None:
    dataset, collate = data(loaded, data_dir, "chats.json")
    together = loaded[0](**collate([dataset[i] for i in range(8)])).logits
    alone = torch.cat([loaded[0](**collate([dataset[i]])).logits for i in range(8)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packed_batch_has_the_same_loss_and_gradients(
    loaded: tuple[PreTrainedModel, ProcessorMixin], data_dir: Path, tmp_path: Path, packing: str
) -> None:
    """Images and text-only samples, one of which is much longer."""
    model = loaded[0]
    set_trainable(model, vlm_groups(model, tower=1.0, projector=1.0, language=1.0))
    turns = [{"from": "human", "value": "Count."}, {"from": "gpt", "value": ", ".join(map(str, range(60)))}]
    records = [*json.loads((data_dir / "chats.json").read_text()), {"id": "long", "conversations": turns}]
    (tmp_path / "data.json").write_text(json.dumps(records))
    dataset, collate = data(loaded, data_dir, str(tmp_path / "data.json"))
    examples = [dataset[i] for i in range(len(records))]
    batches = [collate(examples), ConversationCollator(0, packing=packing)(examples)]
    assert len(batches[1]["input_ids"]) < len(batches[0]["input_ids"])
    results = []
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
        model.zero_grad()
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-3)


def test_packing_is_for_known_language_models(
    loaded: tuple[PreTrainedModel, ProcessorMixin], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(PACKABLE) <= {kind.model_type for kind, _ in FAMILIES.values()}, "what is compared there"
    assert data(loaded, data_dir, "chats.json", packing=True)[1].packing == "longest"
    monkeypatch.setattr(loaded[0].config.get_text_config(), "_attn_implementation_internal", "flash_attention_2")
    assert data(loaded, data_dir, "chats.json", packing=True)[1].packing == "one row"
    monkeypatch.setattr(loaded[0].config.get_text_config(), "model_type", "bloom")
    with pytest.raises(UserError, match=r"language model of type 'bloom'. It is supported for gemma, .* Leave it out"):
        data(loaded, data_dir, "chats.json", packing=True)


@torch.no_grad()
def test_independent_turns_equal_one_conversation_per_turn(
    loaded: tuple[PreTrainedModel, ProcessorMixin], data_dir: Path
) -> None:
    dataset, collate = data(loaded, data_dir, "chats.json", independent_turns=True)
    out = loaded[0](**collate([dataset[i] for i in range(8)]))
    single, logits, losses = ConversationCollator(0), [], []
    for i in range(8):
        sample = dataset.entries[i].sample
        for question, answer in zip(sample.turns[::2], sample.turns[1::2], strict=True):
            text = question[1].removeprefix("<image>\n")
            image = {"image": sample.images[0]} if sample.images else {}
            turns = [{"from": "human", "value": ("<image>\n" if image else "") + text}]
            record = {"id": "x", **image, "conversations": [*turns, {"from": "gpt", "value": answer[1]}]}
            row = encode(parse_sample(record, 0), dataset.chat)
            one = loaded[0](**single([{**dataset[i], "row": row}]))
            logits.append(one.logits)
            losses += [one.loss] * len(one.logits)
    assert len(logits) == 14
    torch.testing.assert_close(out.logits, torch.cat(logits), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.loss, torch.stack(losses).mean(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("independent", [False, True])
def test_the_blank_image_has_zero_gradient_and_changes_nothing(
    loaded: tuple[PreTrainedModel, ProcessorMixin], data_dir: Path, independent: bool
) -> None:
    model = loaded[0]
    set_trainable(model, vlm_groups(model, tower=1.0, projector=1.0, language=None))
    dataset, with_blank = data(loaded, data_dir, "text.json", language=False, independent_turns=independent)
    _, without = data(loaded, data_dir, "text.json", independent_turns=independent)
    examples = [dataset[0], dataset[1]]
    assert "pixel_values" not in without(examples)
    loss = model(**with_blank(examples)).loss
    torch.testing.assert_close(loss, model(**without(examples)).loss, atol=1e-5, rtol=0)
    loss.backward()
    gradients = [p.grad for p in model.model.multi_modal_projector.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    model.zero_grad()


def test_a_frozen_tower_runs_without_a_graph(loaded: tuple[PreTrainedModel, ProcessorMixin], data_dir: Path) -> None:
    model = loaded[0]
    set_trainable(model, vlm_groups(model, tower=None, projector=1.0, language=None))
    dataset, collate = data(loaded, data_dir, "captions.json")
    batch = collate([dataset[0]])
    assert not model.model.vision_tower(batch["pixel_values"]).last_hidden_state.requires_grad
    model(**batch).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.model.multi_modal_projector.parameters())
    assert all(p.grad is None for p in model.model.language_model.parameters())
    model.zero_grad()


def test_independent_turns_need_sdpa(loaded: tuple[PreTrainedModel, ProcessorMixin], data_dir: Path) -> None:
    model = loaded[0]
    model.set_attn_implementation({"text_config": "eager"})
    try:
        with pytest.raises(UserError, match="needs --attn_implementation sdpa"):
            data(loaded, data_dir, "captions.json", independent_turns=True)
    finally:
        model.set_attn_implementation({"text_config": "sdpa"})


def test_independent_turns_refuse_a_sliding_window(
    loaded: tuple[PreTrainedModel, ProcessorMixin], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded[0].config.get_text_config(), "sliding_window", 1000, raising=False)
    with pytest.raises(UserError, match="sliding window of 1000 tokens: lower --model_max_length 2048"):
        data(loaded, data_dir, "captions.json", independent_turns=True)


def test_the_language_models_positions_limit_samples(
    loaded: tuple[PreTrainedModel, ProcessorMixin], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded[0].config.get_text_config(), "max_position_embeddings", 12)
    with pytest.raises(UserError, match=r"Sample red has \d+ tokens, more than the language model's 12 positions\."):
        data(loaded, data_dir, "captions.json")


def test_focusing_can_have_its_own_rate(loaded: tuple[PreTrainedModel, ProcessorMixin]) -> None:
    model = loaded[0]
    groups = {group.name: group for group in vlm_groups(model, tower=None, focusing=2.0, projector=1.0, language=None)}
    set_trainable(model, list(groups.values()))
    encoder = model.model.vision_tower.encoder
    assert {group.learning_rate for group in groups.values()} == {2.0, 1.0, None}
    assert all(p.requires_grad for part in (encoder.stem, encoder.focus) for p in part.parameters())
    assert not any(p.requires_grad for p in encoder.cortex.parameters())


@pytest.mark.slow
def test_other_attention_gives_the_same_numbers_or_a_one_line_error(
    vlm_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    args = StageArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    logits = []
    for attention in ("sdpa", "eager"):
        model, processor = load(ModelArguments(str(vlm_dir), attention), args)
        assert model.config.get_text_config()._attn_implementation == attention
        dataset, collate = data((model.eval(), processor), data_dir, "chats.json")
        with torch.no_grad():
            logits.append(model(**collate([dataset[i] for i in range(4)])).logits)
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="The attention 'flash_attention_2' is not available"):
        load(ModelArguments(str(vlm_dir), "flash_attention_2"), args)


@pytest.mark.slow
def test_activation_checkpointing_gives_the_same_gradients(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    args = StageArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    gradients, runs = [], []
    for again in (False, True):
        model, processor = load(ModelArguments(str(vlm_dir)), args)
        set_trainable(model, vlm_groups(model, tower=1.0, projector=1.0, language=1.0))
        if again:
            model.activation_checkpointing_enable({"use_reentrant": False})
        dataset, collate = data((model, processor), data_dir, "chats.json")
        calls: list[nn.Module] = []
        layers = (model.model.language_model.layers[0].mlp, model.model.vision_tower.encoder.cortex.trunk.blocks[0])
        for layer in layers:
            layer.register_forward_pre_hook(lambda module, *_, calls=calls: calls.append(module))
        model.train()(**collate([dataset[i] for i in range(4)])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        runs.append([calls.count(layer) for layer in layers])
    assert runs == [[1, 1], [2, 2]]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_grouping_by_length_reads_no_image(
    loaded: tuple[PreTrainedModel, ProcessorMixin], data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dataset, collate = data(loaded, data_dir, "chats.json")
    lengths = [len(dataset[i]["row"].input_ids) for i in range(len(dataset))]
    monkeypatch.setattr("sparse_vlm.data.conversations.images.open_image", None)
    options: dict[str, Any] = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2}
    args = StageArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)
    groups = vlm_groups(loaded[0], tower=None, projector=1.0, language=None)
    trainer = ConversationTrainer(groups, model=loaded[0], args=args, train_dataset=dataset, data_collator=collate)
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, LengthGroups)
    assert sampler.lengths == lengths
    assert sorted(sampler) == list(range(8))
    held_out = trainer.get_eval_dataloader(dataset).batch_sampler
    assert list(held_out) == [list(range(8))], "not grouped"


def test_length_groups_depend_only_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        groups = LengthGroups(2, [3, 9, 4, 8] * 8, seed)
        groups.set_epoch(epoch)
        return list(groups)

    first = order(0, 0)
    torch.rand(1)
    assert order(0, 0) == first
    assert sorted(first) == list(range(32))
    assert first != order(0, 1) != order(1, 1)
