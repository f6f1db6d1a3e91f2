"""Tune a vision-language model with TRL and LoRA on LLaVA's JSON, and compare an answer before and after.

    python docs/examples/tune_with_trl.py --model runs/quickstart/aligned --output tuned \\
        --data_path runs/quickstart/data/instruct.json --image_folder runs/quickstart/data/train

This needs `pip install trl peft`. The result is a model directory.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from sparse_vlm.files import read_json
from sparse_vlm.image_files import open_image
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.loading import load_vlm

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
# the attention and the MLPs of the language model; the vision tower and the projector stay as they are
LANGUAGE_MODEL = r".*language_model.*_proj"


def to_messages(record: dict[str, Any], image_folder: Path) -> dict[str, Any]:
    """Convert a record of LLaVA's JSON. TRL puts the images before the text of the first question."""
    said = [(ROLES[turn["from"]], turn["value"].replace("<image>", "").strip()) for turn in record["conversations"]]
    images = [str(image_folder / record["image"])] if "image" in record else []
    return {"messages": [{"role": role, "content": text} for role, text in said], "images": images}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data_path", required=True, help="LLaVA's JSON")
    parser.add_argument("--image_folder", type=Path, required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--max_steps", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    arguments = parser.parse_args(argv)

    model, processor = load_vlm(arguments.model)
    rows = [to_messages(record, arguments.image_folder) for record in read_json(arguments.data_path)]
    shown = next(row for row in rows if row["images"])
    question, image = shown["messages"][0]["content"], open_image(shown["images"][0])
    print(f"> {question}\nbefore: {answer(model, processor, image, question)}")

    settings = SFTConfig(
        arguments.output,
        max_steps=arguments.max_steps,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        assistant_only_loss=True,  # learn the answers and where they end
        max_length=None,  # TRL would cut rows of more than 1024 tokens
        gradient_checkpointing=False,  # saves memory, costs time
        bf16=torch.cuda.is_available(),
        logging_steps=10,
        save_strategy="no",
        report_to="none",
    )
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules=LANGUAGE_MODEL, task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model, settings, train_dataset=Dataset.from_list(rows), processing_class=processor, peft_config=adapter
    )
    trainer.train()

    tuned: Any = trainer.model
    result = tuned.merge_and_unload()
    earlier = result.config.provenance or {}
    stage = {"stage": "TRL's SFTTrainer", "data": [Path(arguments.data_path).name]}
    result.config.provenance = {**earlier, "stages": [*earlier.get("stages", []), stage]}  # for the model card
    result.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
    print(f"after: {answer(*load_vlm(arguments.output), image, question)}")


if __name__ == "__main__":
    main()
