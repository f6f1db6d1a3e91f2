"""`--word_start N`: the projector starts where a picture's tokens read like the words of its caption (ours).

From a random start the projector has to find through all of the frozen language model which directions it reads as
words. Here the projector's last layer is solved by least squares in one pass over captioned pictures: the target of
visual token k is the language model's embedding of its caption's word k, the caption repeated to fill all the tokens.
What a language model can do with a caption's text, it can then do with the picture to begin with. A hidden layer before
the last stays random, drawn wider than weights that are to be trained, so that its GELU bends within its inputs' range.
"""

import logging
import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers.integrations import is_deepspeed_zero3_enabled

from sparse_vlm.data.conversations.dataset import ConversationDataset
from sparse_vlm.data.conversations.encoding import IGNORE, Row
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from train.language.data import StageData
from train.stages.stage import StageArguments

logger = logging.getLogger(__name__)
HIDDEN_WEIGHT_STD, HIDDEN_BIAS_STD = 1.0, 0.5  # of a hidden unit's sum over normalised inputs; of its offset
RIDGE = 1e-4  # times the mean of the features' sums of squares


class LeastSquares:
    """Linear map with offset from rows of features to rows of targets, from sums alone (float64).

    Args:
        features: width of a row.
        targets: width of a row.
    """

    def __init__(self, features: int, targets: int) -> None:
        self.gram = torch.zeros(features + 1, features + 1, dtype=torch.float64)
        self.cross = torch.zeros(features + 1, targets, dtype=torch.float64)
        self.squares = torch.zeros(targets, dtype=torch.float64)

    def add(self, features: Tensor, targets: Tensor) -> None:
        """float[R, F] and float[R, T]."""
        if features.device.type == "mps":  # it has no float64
            features, targets = features.cpu(), targets.cpu()
        rows = torch.cat([features, features.new_ones(len(features), 1)], dim=1).double()
        self.gram += (rows.T @ rows).cpu()
        self.cross += (rows.T @ targets.double()).cpu()
        self.squares += targets.double().square().sum(0).cpu()

    def solve(self, ridge: float) -> tuple[Tensor, Tensor, float]:
        """(weight float64[T, F], bias float64[T], explained share of the targets' variance around their mean)."""
        count = self.gram[-1, -1]
        damping = ridge * self.gram.diagonal().mean() * torch.eye(len(self.gram), dtype=torch.float64)
        damping[-1, -1] = 0  # the offset is free
        solution = torch.linalg.solve(self.gram + damping, self.cross)
        explained = 2 * (solution * self.cross).sum(0) - (solution * (self.gram @ solution)).sum(0)
        mean_part = self.cross[-1].square() / count
        share = (explained - mean_part).sum() / (self.squares - mean_part).sum()
        return solution[:-1].T, solution[-1], share.item()


def start_from_words(
    model: SparseVLMForConditionalGeneration, data: StageData, pictures: int, args: StageArguments
) -> None:
    """Sets the projector's weights in place; the same in every process.

    Args:
        model: tower, projector and word embeddings are used; the rest of the language model is not.
        data: of the stage; all that the assistant says in a sample counts as its pictures' caption.
        pictures: how many samples are read, randomly chosen; all if there are fewer.
        args: device, batch size and seed.

    Raises:
        UserError: under ZeRO-3, or no chosen sample has a picture and words.
    """
    if is_deepspeed_zero3_enabled():
        raise UserError(
            "--word_start needs the whole projector in each process: use train/configs/deepspeed/zero2.json, "
            "not ZeRO-3."
        )
    for part in (model.model.vision_tower, model.model.multi_modal_projector, model.get_input_embeddings()):
        part.to(args.device)
    projector: Any = model.model.multi_modal_projector
    hidden, last = projector[:-1], projector[-1]
    _redraw(hidden, args.seed)
    problem = LeastSquares(last.in_features, last.out_features)
    chosen = random.Random(args.seed).sample(range(len(data.training)), min(pictures, len(data.training)))
    batches = DataLoader(
        Subset(data.training, chosen),
        batch_size=args.train_batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=list,
    )
    with torch.no_grad():
        for batch in tqdm(batches, desc="Words of the captions", disable=args.disable_tqdm or args.process_index > 0):
            worded = [(item["images"], words) for item in batch if (words := _words(item["row"], data.training))]
            images = [image for of_sample, _ in worded for image in of_sample]
            if not images:
                continue
            stacked = torch.stack(images).to(args.device)
            tokens = stacked if data.collator.image_key == "visual_tokens" else model.model.encode_images(stacked)
            tokens = tokens.to(last.weight.dtype)  # a cache's may have less precision
            targets = torch.cat([_repeated(words, len(of_sample), tokens.shape[1]) for of_sample, words in worded])
            embedded = model.get_input_embeddings()(targets.to(args.device))
            problem.add(hidden(tokens).flatten(0, 1), embedded.flatten(0, 1))
    if not problem.gram[-1, -1]:
        read = f"the {len(chosen)} samples of --word_start"
        raise UserError(f"None of {read} has a picture and words: raise it, or leave it out.")
    weight, bias, share = problem.solve(RIDGE)
    with torch.no_grad():
        last.weight.copy_(weight)
        last.bias.copy_(bias)
    if args.process_index == 0:
        logger.warning("--word_start: the tokens explain %.1f %% of their captions' word embeddings.", 100 * share)


def _redraw(hidden: nn.Sequential, seed: int) -> None:
    """New random weights before the projector's last layer; a linear projector has only a norm there."""
    generator = torch.Generator().manual_seed(seed)
    for layer in hidden:
        if isinstance(layer, nn.Linear):
            weight, bias = (torch.randn(tensor.shape, generator=generator) for tensor in (layer.weight, layer.bias))
            with torch.no_grad():
                layer.weight.copy_(weight * HIDDEN_WEIGHT_STD / layer.in_features**0.5)
                layer.bias.copy_(bias * HIDDEN_BIAS_STD)


def _words(row: Row, dataset: ConversationDataset) -> list[int]:
    """A sample's answers without control tokens, such as those that end turns; nothing may be left."""
    control = dataset.chat.control_ids
    return [token for token in row.targets if token != IGNORE and token not in control]


def _repeated(words: list[int], pictures: int, width: int) -> Tensor:
    """int64[pictures, width]: the words over and over, the same for each picture of a sample."""
    return torch.tensor([words[k % len(words)] for k in range(width)]).expand(pictures, width)
