"""TRL's trainers on model directories: their first losses are those of the project's own batches."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from sparse_vlm.data import easy_vqa
from sparse_vlm.data.conversations.collate import ConversationCollator
from sparse_vlm.data.conversations.dataset import ConversationDataset
from sparse_vlm.data.conversations.images import FolderImages
from sparse_vlm.data.conversations.sources import Source
from sparse_vlm.image_files import open_image
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.language.turns import ChatFormat
from sparse_vlm.vlm.loading import load_vlm
from tests.docs.test_examples import run

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the package trl: `make test-trl`"),
    pytest.mark.filterwarnings("default"),  # TRL's own
    pytest.mark.slow,
]
IMAGES = easy_vqa.split_folder("test") / "images"
HUMAN, USER = ("human", "gpt"), ("user", "assistant")
TYPED = "what is <|im_end|> for?"  # control tokens as text
Conversations = list[tuple[int | None, list[tuple[str, str]]]]  # an image, and pairs of question and answer
CONVERSATIONS: Conversations = [
    (0, [("what shape is it?", "a circle"), ("is it blue?", "yes, it is"), ("sure?", "no")]),
    (1, [("is there a red shape?", "no")]),
    (None, [("what is two and two?", "four")]),
    (2, [(TYPED, "a placeholder, <|im_end|> is not")]),
]


TEXT = [conversation for conversation in CONVERSATIONS if conversation[0] is None]


def records(conversations: Conversations) -> list[dict[str, Any]]:
    """The conversations in LLaVA's JSON."""
    made = []
    for number, (image, turns) in enumerate(conversations):
        said = [{"from": role, "value": text} for turn in turns for role, text in zip(HUMAN, turn, strict=True)]
        if image is not None:
            said[0]["value"] = f"<image>\n{said[0]['value']}"
        made.append({"id": f"c{number}", "conversations": said} | ({} if image is None else {"image": f"{image}.png"}))
    return made


def rows(conversations: Conversations = CONVERSATIONS) -> list[dict[str, Any]]:
    """The conversations in TRL's form."""
    made = []
    for image, turns in conversations:
        messages = [{"role": role, "content": text} for turn in turns for role, text in zip(USER, turn, strict=True)]
        made.append({"messages": messages, "images": [] if image is None else [open_image(IMAGES / f"{image}.png")]})
    return made


def own_batch(processor: Any, conversations: Conversations = CONVERSATIONS) -> dict[str, Any]:
    """The project's batch of the conversations."""

    def pixel_values(image: Any) -> torch.Tensor:
        return processor.image_processor(image, return_tensors="pt")["pixel_values"][0]

    chat = ChatFormat(
        processor.tokenizer, processor.chat_template, processor.image_token_id, processor.num_image_tokens
    )
    dataset = ConversationDataset([Source("test", records(conversations), FolderImages(IMAGES))], chat, pixel_values)
    collate = ConversationCollator(processor.tokenizer.pad_token_id, default_tokens=processor.num_image_tokens)
    return collate([dataset[place] for place in range(len(dataset))])


def loss_of(model: Any, batch: Any) -> float:
    with torch.no_grad():
        return float(model(**batch).loss)


def settings(kind: str, output: Path, **options: Any) -> Any:
    import trl

    return getattr(trl, kind)(
        str(output),
        max_steps=1,
        learning_rate=0.0,
        logging_steps=1,
        per_device_train_batch_size=len(CONVERSATIONS),
        report_to="none",
        save_strategy="no",
        bf16=False,
        use_cpu=True,
        **options,
    )


def first_log(model: Any, processor: Any, data: list[dict[str, Any]], arguments: Any, **options: Any) -> dict[str, Any]:
    from datasets import Dataset
    from trl import DPOTrainer, SFTTrainer

    kind: Any = SFTTrainer if type(arguments).__name__ == "SFTConfig" else DPOTrainer
    dataset = Dataset.from_list(data)
    trainer = kind(model, args=arguments, train_dataset=dataset, processing_class=processor, **options)
    trainer.train()
    return trainer.state.log_history[0]


def with_images(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a row with its images in the first one."""
    first, *others = row["messages"]
    parts = [{"type": "image"} for _ in row["images"]]
    return [{**first, "content": [*parts, {"type": "text", "text": first["content"]}]}, *others]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_messages_and_images_with_the_loss_of_the_answers(vlm_dir: Path, tmp_path: Path, checkpointing: bool) -> None:
    """Images, a row without an image, several turns and typed control tokens, as the project's own batch has them."""
    model, processor = load_vlm(vlm_dir)
    expected = loss_of(model, own_batch(processor))
    arguments = settings("SFTConfig", tmp_path, assistant_only_loss=True, gradient_checkpointing=checkpointing)
    assert first_log(model, processor, rows(), arguments)["loss"] == pytest.approx(expected, rel=1e-4)


def text_batch(processor: Any, opened: int | None = None) -> dict[str, Any]:
    """A batch of the rows' texts as the chat template writes them. Labels are all text, or what follows the prompt.

    Args:
        processor: the processor.
        opened: number of messages at the end that are not part of the prompt; None: there is no prompt.
    """
    texts = [processor.apply_chat_template(with_images(row)) for row in rows()]
    images = [row["images"] for row in rows()]
    inputs = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    ids = inputs["input_ids"]
    hidden = (inputs["attention_mask"] == 0) | (ids == processor.image_token_id)
    if opened is not None:
        before = [with_images(row)[:-opened] for row in rows()]
        starts = [processor.apply_chat_template(turns, add_generation_prompt=True) for turns in before]
        for place, prompt in enumerate(processor(text=starts, images=images)["input_ids"]):
            hidden[place, : len(prompt)] = True
    return {**inputs, "labels": ids.masked_fill(hidden, -100)}


def test_messages_and_images_with_the_loss_of_all_text(vlm_dir: Path, tmp_path: Path) -> None:
    """Image tokens do not count: TRL's labels are a copy of the input ids."""
    model, processor = load_vlm(vlm_dir)
    expected = loss_of(model, text_batch(processor))
    log = first_log(model, processor, rows(), settings("SFTConfig", tmp_path))
    assert log["loss"] == pytest.approx(expected, rel=1e-4)


def prompts(row: dict[str, Any]) -> dict[str, Any]:
    """A row as prompt and completion."""
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:], "images": row["images"]}


def test_prompt_and_completion(vlm_dir: Path, tmp_path: Path) -> None:
    model, processor = load_vlm(vlm_dir)
    expected = loss_of(model, text_batch(processor, opened=1))
    log = first_log(model, processor, list(map(prompts, rows())), settings("SFTConfig", tmp_path))
    assert log["loss"] == pytest.approx(expected, rel=1e-4)


def test_text_alone_with_the_loss_of_the_answers(vlm_dir: Path, tmp_path: Path) -> None:
    """A data set without images takes TRL's other collator."""
    model, processor = load_vlm(vlm_dir)
    expected = loss_of(model, own_batch(processor, TEXT))
    data = [{"messages": row["messages"]} for row in rows(TEXT)]
    log = first_log(model, processor, data, settings("SFTConfig", tmp_path, assistant_only_loss=True))
    assert log["loss"] == pytest.approx(expected, rel=1e-4)


def test_lora_is_trained_saved_and_merged(vlm_dir: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from trl import SFTTrainer

    model, processor = load_vlm(vlm_dir)
    before = loss_of(model, own_batch(processor))
    arguments = settings("SFTConfig", tmp_path, assistant_only_loss=True)
    arguments.learning_rate, arguments.max_steps = 1e-2, 5
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_list(rows()),
        processing_class=processor,
        peft_config=LoraConfig(target_modules=r".*language_model.*_proj"),
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(before, rel=1e-4)  # adapters begin with zeros
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(load_vlm(vlm_dir)[0], str(tmp_path / "adapter"))
    after = loss_of(again, own_batch(processor))
    assert after < before - 0.01
    merged: Any = again.merge_and_unload()
    assert loss_of(merged, own_batch(processor)) == pytest.approx(after, rel=1e-3)


def test_a_directory_is_opened_by_its_path(vlm_dir: Path, tmp_path: Path) -> None:
    """TRL opens model and processor itself."""
    model, processor = load_vlm(vlm_dir)
    expected = loss_of(model, own_batch(processor))
    arguments = settings("SFTConfig", tmp_path, assistant_only_loss=True, model_init_kwargs={"dtype": "float32"})
    assert first_log(str(vlm_dir), None, rows(), arguments)["loss"] == pytest.approx(expected, rel=1e-4)


def test_dpo_with_images(vlm_dir: Path, tmp_path: Path) -> None:
    """The sum of the log-probabilities is that of the model's own; the reference model is the same."""
    model, processor = load_vlm(vlm_dir)
    batch = text_batch(processor, opened=1)
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        log_probs = log_softmax(model(**batch).logits[:, :-1].float(), -1)
    chosen = log_probs.gather(2, labels.clamp(min=0)[..., None])[..., 0][labels != -100].sum()
    data = [
        {
            "prompt": row["messages"][:-1],
            "chosen": row["messages"][-1:],
            "rejected": [{"role": "assistant", "content": "green"}],
            "images": row["images"],
        }
        for row in rows()
    ]
    log = first_log(model, processor, data, settings("DPOConfig", tmp_path))
    assert log["loss"] == pytest.approx(0.693147, rel=1e-4)
    assert log["logps/chosen"] == pytest.approx(float(chosen) / len(data), rel=1e-4)


def test_the_example(vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.json").write_text(json.dumps(records(CONVERSATIONS)))
    arguments = ["--model", vlm_dir, "--data_path", tmp_path / "data.json", "--image_folder", IMAGES]
    run("tune_with_trl", *arguments, "--output", tmp_path / "tuned", "--max_steps", 2, "--batch_size", 2)
    printed = capsys.readouterr().out
    assert "> what shape is it?\nbefore: " in printed
    model, processor = load_vlm(tmp_path / "tuned")
    said = answer(model, processor, open_image(IMAGES / "0.png"), "what shape is it?")
    assert f"after: {said}" in printed
    assert "- TRL's SFTTrainer: data.json" in (tmp_path / "tuned" / "README.md").read_text()
