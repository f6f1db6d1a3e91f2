"""What the alignment and the instruction stage share: their flags, model, data, parts, and the final directory."""

import functools
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from sparse_vlm.data.collate import ConversationCollator
from sparse_vlm.data.conversations import ChatFormat, read_samples
from sparse_vlm.data.dataset import ConversationDataset
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_text
from sparse_vlm.vlm.build import load_vlm
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseFormerImageProcessor, SparseVLMProcessor
from train.stage import Part, StageArguments, StageTrainer, prepare, publish, run, what_trains

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """The model to start from."""

    model_name_or_path: str = field(metadata={"help": "a directory of `sparse-vlm build` or of an earlier stage"})


@dataclass
class DataArguments:
    """The data, in LLaVA's format."""

    data_path: str = field(metadata={"help": "LLaVA JSON or JSONL"})
    image_folder: str = field(default=".", metadata={"help": "what the samples' image paths are relative to"})
    model_max_length: int = field(default=2048, metadata={"help": "a longer sample is an error; nothing is cut"})
    independent_turns: bool = field(
        default=False, metadata={"help": "turns of a sample share the image but do not see each other (VQA)"}
    )
    on_bad_sample: str = field(default="error", metadata={"help": "error | skip (reads all data once at the start)"})


def load(
    model_args: ModelArguments, args: StageArguments
) -> tuple[SparseVLMForConditionalGeneration, SparseVLMProcessor]:
    """Prepares the start and loads the model in float32 (bf16 is the trainer's autocast or DeepSpeed's)."""
    prepare(args)
    model, processor = load_vlm(model_args.model_name_or_path, dtype=torch.float32)
    # Under ZeRO-3 transformers 5.23 also keeps the renamings that no name needed, and would save with them reversed.
    model._weight_conversions = []  # type: ignore[assignment]
    return model, processor


def pixel_values(image_processor: SparseFormerImageProcessor, image: Image.Image) -> torch.Tensor:
    """float[3,H,W] of one image by the model directory's own image processor."""
    return image_processor(images=image, return_tensors="pt")["pixel_values"][0]


def make_data(
    data_args: DataArguments,
    args: StageArguments,
    model: SparseVLMForConditionalGeneration,
    processor: SparseVLMProcessor,
    *,
    language: bool,
) -> tuple[ConversationDataset, ConversationCollator]:
    """The dataset and the collator.

    Args:
        language: whether parts behind the embedding train too. If not, or with several processes, a batch without
            images gets a blank one: otherwise nothing would have a gradient, or some process would wait.
    """
    if data_args.independent_turns and model.config.get_text_config()._attn_implementation not in ("sdpa", None):
        raise UserError("--independent_turns needs the attention implementation sdpa; it uses a 4D mask.")
    chat = ChatFormat(
        processor.tokenizer,
        processor.tokenizer.get_chat_template(),
        model.config.image_token_id,
        processor.num_image_tokens,
    )
    preprocess = functools.partial(pixel_values, processor.image_processor)
    dataset = ConversationDataset(
        read_samples(data_args.data_path),
        data_args.image_folder,
        chat,
        preprocess,
        independent_turns=data_args.independent_turns,
        max_length=data_args.model_max_length,
        on_bad_sample=data_args.on_bad_sample,
    )
    shape = preprocess(Image.new("RGB", (8, 8))).shape
    blank = None if language and args.world_size == 1 else (chat.image_token_id, chat.tokens_per_image, shape)
    pad = processor.tokenizer.pad_token_id
    collator = ConversationCollator(
        processor.tokenizer.eos_token_id if pad is None else pad,
        independent_turns=data_args.independent_turns,
        blank_image=blank,
    )
    return dataset, collator


def vlm_parts(
    model: SparseVLMForConditionalGeneration, *, tower: float | None, projector: float | None, language: float | None
) -> list[Part]:
    """The three parts of a VLM with their learning rates (None: frozen). The head counts as language."""
    vision, projection = (tuple(m.parameters()) for m in (model.model.vision_tower, model.model.multi_modal_projector))
    other = {id(parameter) for parameter in vision + projection}
    rest = tuple(parameter for parameter in model.parameters() if id(parameter) not in other)
    return [
        Part("vision tower", vision, tower),
        Part("projector", projection, projector),
        Part("language model", rest, language),
    ]


class ConversationTrainer(StageTrainer):
    """StageTrainer that groups rows by length without reading their images (group_by_length)."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, ConversationDataset):
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(batch, lengths=dataset.lengths())


def train(
    model: SparseVLMForConditionalGeneration | PeftModel,
    parts: Sequence[Part],
    args: StageArguments,
    dataset: ConversationDataset,
    collator: ConversationCollator,
    processor: SparseVLMProcessor,
) -> Path:
    """Trains; returns a directory in output_dir with what `Trainer.save_model` writes, consolidated under ZeRO."""
    table = what_trains(model, parts)
    if args.process_index == 0:
        logger.warning("What trains:\n%s", table)
        write_text(Path(args.output_dir) / "what_trains.txt", table + "\n")
    trainer = ConversationTrainer(
        parts, model=model, args=args, train_dataset=dataset, data_collator=collator, processing_class=processor
    )
    text_config = model.config.get_text_config()
    use_cache, text_config.use_cache = text_config.use_cache, False  # training never reads the keys and values again
    run(trainer)
    text_config.use_cache = use_cache
    del model.config.use_cache  # set by Trainer; the result's config.json is to equal the start's
    saved = Path(args.output_dir) / ".finished"
    if args.process_index == 0:
        shutil.rmtree(saved, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(saved))
    return saved


def finish(saved: Path, args: StageArguments) -> None:
    """Makes `saved` the stage's result, by the main process."""
    if args.process_index == 0:
        publish(saved, Path(args.output_dir), keep_checkpoints=args.keep_checkpoints)
        logger.warning("Model directory: %s", args.output_dir)
