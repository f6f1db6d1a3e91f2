"""`--word_start N`: initialise the projector so that an image's tokens lie near its caption's word embeddings (ours).

From a random start, the projector must discover through the whole frozen language model which directions the model
reads as words. Instead, this solves the projector's last layer by least squares in one pass over captioned images: the
target of visual token k is the language model's embedding of word k of the caption, which is repeated to fill all
tokens. Then the language model can begin with what it can do with the caption's text. The hidden layer stays random,
with a wider distribution than usual, so that its GELU is nonlinear within the range of its inputs.
"""

import logging
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers.integrations import is_deepspeed_zero3_enabled

from sparse_vlm.data.conversations.collate import Visual
from sparse_vlm.data.conversations.dataset import ConversationDataset
from sparse_vlm.data.conversations.encoding import IGNORE, Row
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from train.language.data import StageData
from train.stages.processes import share, summed
from train.stages.stage import StageArguments

logger = logging.getLogger(__name__)
HIDDEN_WEIGHT_STD, HIDDEN_BIAS_STD = 1.0, 0.5  # of a hidden unit's sum over normalised inputs, and of its bias
RIDGE = 1e-4  # relative to the mean of the features' sums of squares


class LeastSquares:
    """Affine least squares from features to targets, from running sums in float64.

    Args:
        features: number of features.
        targets: number of targets.
    """

    def __init__(self, features: int, targets: int) -> None:
        self.gram = torch.zeros(features + 1, features + 1, dtype=torch.float64)
        self.cross = torch.zeros(features + 1, targets, dtype=torch.float64)
        self.squares = torch.zeros(targets, dtype=torch.float64)

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add R rows of features, float[R, F], and targets, float[R, T]."""
        if features.device.type == "mps":  # MPS has no float64
            features, targets = features.cpu(), targets.cpu()
        rows = torch.cat([features, features.new_ones(len(features), 1)], dim=1).double()
        self.gram += (rows.T @ rows).cpu()
        self.cross += (rows.T @ targets.double()).cpu()
        self.squares += targets.double().square().sum(0).cpu()

    def add_processes(self, args: StageArguments) -> None:
        """Add the rows of the other processes, in all of them."""
        self.gram, self.cross, self.squares = (summed(part, args) for part in (self.gram, self.cross, self.squares))

    def solve(self, ridge: float) -> tuple[Tensor, Tensor, float]:
        """Return weight float64[T, F], bias float64[T], and the explained share of the targets' variance."""
        count = self.gram[-1, -1]
        damping = ridge * self.gram.diagonal().mean() * torch.eye(len(self.gram), dtype=torch.float64)
        damping[-1, -1] = 0  # the bias is not regularised
        solution = torch.linalg.solve(self.gram + damping, self.cross)
        explained = 2 * (solution * self.cross).sum(0) - (solution * (self.gram @ solution)).sum(0)
        mean_part = self.cross[-1].square() / count
        share = (explained - mean_part).sum() / (self.squares - mean_part).sum()
        return solution[:-1].T, solution[-1], share.item()


def start_from_words(
    model: SparseVLMForConditionalGeneration, data: StageData, count: int, args: StageArguments
) -> None:
    """Set the projector's weights in place, equally in every process.

    Each process encodes its share of the samples. Up to rounding, the weights do not depend on the number of processes.

    Args:
        model: the model, of which only tower, projector and word embeddings run.
        data: the stage's data. All answers of a sample together are the caption of its images.
        count: number of samples to read, randomly chosen; all if there are fewer.
        args: device, batch size and seed.

    Raises:
        UserError: under ZeRO-3, or no chosen sample has an image and words.
    """
    if is_deepspeed_zero3_enabled():
        raise UserError(
            "--word_start needs the whole projector in each process: use train/configs/deepspeed/zero2.json, "
            "not ZeRO-3."
        )
    for module in (model.model.vision_tower, model.model.multi_modal_projector, model.get_input_embeddings()):
        module.to(args.device)
    projector: Any = model.model.multi_modal_projector
    hidden, last = projector[:-1], projector[-1]
    _redraw(hidden, args.seed)
    chosen = random.Random(args.seed).sample(range(len(data.training)), min(count, len(data.training)))
    problem = LeastSquares(last.in_features, last.out_features)
    _add_samples(problem, model, data, share(chosen, args), args)
    problem.add_processes(args)
    if not problem.gram[-1, -1]:
        raise UserError(
            f"None of the {len(chosen)} samples of --word_start has an image and words: raise it, or leave it out."
        )
    weight, bias, explained = problem.solve(RIDGE)
    with torch.no_grad():
        last.weight.copy_(weight)
        last.bias.copy_(bias)
    if args.process_index == 0:
        logger.info(
            "--word_start: visual tokens explain %.1f %% of the variance of the captions' word embeddings.",
            100 * explained,
        )


def _add_samples(
    problem: LeastSquares,
    model: SparseVLMForConditionalGeneration,
    data: StageData,
    chosen: Sequence[int],
    args: StageArguments,
) -> None:
    """Add the hidden features and the word embeddings of the chosen samples."""
    projector: Any = model.model.multi_modal_projector
    batches = DataLoader(
        Subset(data.training, chosen),
        batch_size=args.train_batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=list,
    )
    with torch.no_grad():
        for batch in tqdm(batches, desc="word start", disable=args.disable_tqdm or args.process_index > 0):
            worded = [(item, words) for item in batch if (words := _words(item["row"], data.training))]
            inputs = data.collator.stacked([Visual(item["images"], item["views"]) for item, _ in worded])
            if not inputs:
                continue
            inputs = {name: value.to(args.device) for name, value in inputs.items()}
            tokens = inputs.get("visual_tokens")
            if tokens is None:
                tokens = torch.cat(model.model.encode_images(**inputs))
            tokens = tokens.to(projector[-1].weight.dtype)  # cached tokens may have a lower precision
            targets = [
                words[k % len(words)] for item, words in worded for view in item["views"] for k in range(view.tokens)
            ]
            embedded = model.get_input_embeddings()(torch.tensor(targets, device=args.device))
            problem.add(projector[:-1](tokens), embedded)


def _redraw(hidden: nn.Sequential, seed: int) -> None:
    """Draw new weights for the layers before the projector's last one. A linear projector has only a norm there."""
    generator = torch.Generator().manual_seed(seed)
    for layer in hidden:
        if isinstance(layer, nn.Linear):
            weight, bias = (torch.randn(tensor.shape, generator=generator) for tensor in (layer.weight, layer.bias))
            with torch.no_grad():
                layer.weight.copy_(weight * HIDDEN_WEIGHT_STD / layer.in_features**0.5)
                layer.bias.copy_(bias * HIDDEN_BIAS_STD)


def _words(row: Row, dataset: ConversationDataset) -> list[int]:
    """Return the tokens of a sample's answers without control tokens such as ends of turns; may be empty."""
    control = dataset.chat.control_ids
    return [token for token in row.targets if token != IGNORE and token not in control]
