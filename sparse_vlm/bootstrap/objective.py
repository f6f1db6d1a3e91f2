"""The bootstrapping task: student and frozen teacher in one module, images -> losses."""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparse_vlm.bootstrap.grid_decoder import GridDecoder
from sparse_vlm.bootstrap.targets import TargetNormalization
from sparse_vlm.bootstrap.teachers import Teacher
from sparse_vlm.encoder import EncoderOutput, SparseFormer
from sparse_vlm.encoder.cortex import Cortex
from sparse_vlm.encoder.rois import sample_features, to_center_size
from sparse_vlm.errors import UserError
from sparse_vlm.recompute import RecomputesBlocks

GRID_LAYERS = (-2, -1)  # an LLM reads the latent tokens that enter the last block; the last block needs a loss too
SMOOTH_L1_SHARE = 0.1  # of the distance between tokens of grids, as in EUPE
ATTENTION: list[SDPBackend] = [
    backend for backend in SDPBackend.__members__.values() if backend is not SDPBackend.ERROR
]
BATCH = 64  # images per pass of the teacher when its statistics are measured


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the loss. A term with weight 0 is not computed.

    All terms compare representations after the normalisation of the task.

    Attributes:
        alignment: 1 − cosine of the final representations (arXiv 2312.01987 says which). The other terms are ours.
        token: 1 − cosine of each final latent token and the teacher's patch tokens at the centre of its RoI.
        feature: smooth L1 of the final representations, which constrains their length too.
        view: 1 − cosine of the final representation and the teacher's representation of a second view.
        entry: like `token`, for the tokens that enter the first inherited block in both models. It trains the new parts
            without a gradient through the inherited ones.
        grid: 0.9 · (1 − cosine) + 0.1 · smooth L1 of the teacher's patch tokens and those that a `GridDecoder` rebuilds
            from the latent tokens, mean over the layers before and behind the last block.
    """

    alignment: float = 1.0
    token: float = 0.0
    feature: float = 0.0
    view: float = 0.0
    entry: float = 0.0
    grid: float = 0.0

    def __post_init__(self) -> None:
        values = asdict(self)
        if not all(0 <= value < math.inf for value in values.values()) or not any(values.values()):
            raise UserError(
                "The weights of the loss must be finite and not negative, and at least one must be positive, got "
                f"{values}."
            )


class BootstrapTask(RecomputesBlocks, nn.Module):
    """Alignment of a student with its teacher on unlabelled images.

    Args:
        student: trained and saved.
        teacher: runs without gradients. It is not a submodule, so it is neither saved nor wrapped by DeepSpeed.
        weights: weights of the terms of the loss.
        normalization: kind of `TargetNormalization`; its statistics come from `measure_targets`.
        decoder_width, decoder_depth: see `GridDecoder`; used if `weights.grid` is positive.
        second_view: the same teacher opened at another image size, which is given the same crops at that size; needed
            if `weights.view` is positive.
        teacher_dtype: dtype that the teachers' trunks are converted to and compute in, regardless of autocast.

    Raises:
        UserError: the weight `view` is positive without a second view, or the reverse.
    """

    def __init__(
        self,
        student: SparseFormer,
        teacher: Teacher,
        weights: LossWeights | None = None,
        second_view: Teacher | None = None,
        teacher_dtype: torch.dtype = torch.float32,
        *,
        normalization: str = "none",
        decoder_width: int = 256,
        decoder_depth: int = 2,
    ) -> None:
        super().__init__()
        self.student = student
        self.weights = weights or LossWeights()
        if (second_view is not None) != (self.weights.view > 0):
            raise UserError(
                f"A second view of the teacher needs an image size and a positive weight, but the weight is "
                f"{self.weights.view:g} and there is {'no' if second_view is None else 'a'} second view."
            )
        self.teacher_dtype = teacher_dtype
        teachers = [teacher] if second_view is None else [teacher, second_view]
        for opened in teachers:
            opened.trunk.to(teacher_dtype)  # the text encoder, if any, keeps its dtype
        self._unregistered = tuple(teachers)
        width = teacher.cortex.width
        self.normalization = normalization
        self.pooled_targets = TargetNormalization(teacher.cortex.head_dim or width, normalization)
        self.token_targets = nn.ModuleDict(
            {str(layer): TargetNormalization(width, normalization) for layer in self.layers}
        )
        self.decoders = nn.ModuleDict()
        if self.weights.grid:
            for layer in GRID_LAYERS:
                self.decoders[str(layer)] = GridDecoder(width, decoder_width, decoder_depth)

    @property
    def teacher(self) -> Teacher:
        """The frozen teacher."""
        return self._unregistered[0]

    @property
    def image_size(self) -> int:
        """Side of the training crops in pixels: the larger one of the views."""
        return max(teacher.preprocessing.crop for teacher in self._unregistered)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose hidden states the loss reads, as in `Teacher.recorded`."""
        layers = set(GRID_LAYERS) if self.weights.grid else set()
        layers |= {-1} if self.weights.token else set()
        layers |= {self._entry_layer} if self.weights.entry else set()
        return tuple(sorted(layers))

    @property
    def _entry_layer(self) -> int:
        return -self.student.config.cortex.depth - 1

    def measure_targets(self, images: Tensor) -> None:
        """Take the statistics of the normalisation.

        Args:
            images: typical images float[N, 3, S, S], preprocessed at the teacher's input size.
        """
        targets: list[Tensor] = []
        patches: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        for batch in images.split(BATCH):
            target, states = self._target_and_patches(batch)
            targets.append(target)
            for layer, state in states.items():
                patches[layer].append(state)
        self.pooled_targets.measure(torch.cat(targets))
        for layer, seen in patches.items():
            self._token_target(layer).measure(torch.cat(seen))

    def target(self, images: Tensor) -> Tensor:
        """Target of the student for images float[B, 3, H, W]: the teacher's final representation, float32[B, D]."""
        return self._run(self.teacher, images)

    @property
    def recomputed_cortex(self) -> Cortex:
        """The cortex whose blocks `--activation_checkpointing` recomputes."""
        return self.student.cortex

    def forward(self, pixel_values: Tensor, tokens: int | None = None) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            pixel_values: float[B, 3, S, S] with S = `image_size`; each view is resized from it.
            tokens: number of latent tokens of the student; None for its own initial RoIs.

        Returns:
            "loss", the weighted sum; each term by its name ("alignment_loss", …); "cosine", float32[B]. Only the loss
            has gradients.
        """
        images = _resized(pixel_values, self.teacher.preprocessing.crop)
        output = self.student(images, tokens=tokens)
        target, patches = self._target_and_patches(images)
        terms = self._pooled_terms(output.pooled, target, pixel_values) | self._token_terms(output, patches)
        weights = asdict(self.weights)
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        named = {f"{name}_loss": term.detach() for name, term in terms.items()}
        return {"loss": loss, **named, "cosine": F.cosine_similarity(output.pooled.detach().float(), target, dim=-1)}

    def _pooled_terms(self, pooled: Tensor, target: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        """Terms of the final representations float[B, D]."""
        terms, own, wanted = {}, self.pooled_targets(pooled), self.pooled_targets(target)
        if self.weights.alignment:
            terms["alignment"] = _distance(own, wanted)
        if self.weights.feature:
            terms["feature"] = F.smooth_l1_loss(own, wanted)
        if self.weights.view:
            second = self._unregistered[1]
            terms["view"] = _distance(own, self.pooled_targets(self._run(second, pixel_values)))
        return terms

    def _token_terms(self, output: EncoderOutput, patches: dict[int, Tensor]) -> dict[str, Tensor]:
        """Terms of the latent tokens. `patches`: the teacher's, float32[B, rows · columns, C] by layer."""
        terms, rois, prefix = {}, output.rois[-1], self.student.num_prefix_tokens

        def latent(layer: int) -> Tensor:
            return output.hidden_states[layer][:, prefix:]

        for name, layer in (("token", -1), ("entry", self._entry_layer)):
            if getattr(self.weights, name):
                normalize = self._token_target(layer)
                terms[name] = self._token_loss(normalize(latent(layer)), rois, normalize(patches[layer]))
        if self.weights.grid:
            losses = []
            for name, decoder in self.decoders.items():
                wanted = self._token_target(int(name))(patches[int(name)])
                rebuilt = decoder(latent(int(name)), rois, self.teacher.grid).float()
                smooth_l1 = F.smooth_l1_loss(rebuilt, wanted)
                losses.append((1 - SMOOTH_L1_SHARE) * _distance(rebuilt, wanted) + SMOOTH_L1_SHARE * smooth_l1)
            terms["grid"] = torch.stack(losses).mean()
        return terms

    def _token_target(self, layer: int) -> TargetNormalization:
        normalize = self.token_targets[str(layer)]
        assert isinstance(normalize, TargetNormalization)
        return normalize

    def _token_loss(self, latent: Tensor, rois: Tensor, patches: Tensor) -> Tensor:
        """Mean of 1 − cosine over all latent tokens.

        No gradient reaches the RoIs, which would otherwise move to places where the teacher is easy to imitate.

        Args:
            latent: the student's latent tokens float32[B, n, C].
            rois: float32[B, n, 4].
            patches: the teacher's patch tokens float32[B, rows · columns, C].
        """
        grid = patches.transpose(1, 2).unflatten(-1, self.teacher.grid)
        centers = to_center_size(rois.detach().float())[0]
        wanted = sample_features(grid, centers.unsqueeze(2), padding="border").squeeze(2)
        return _distance(latent, wanted)

    def _target_and_patches(self, images: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Return `target` and the teacher's patch tokens float32[B, rows · columns, C] by layer, in one pass."""
        rows, columns = self.teacher.grid
        with self.teacher.recorded(self.layers) as states:
            target = self.target(images)
        return target, {layer: state[:, -rows * columns :].float() for layer, state in states.items()}

    def _run(self, teacher: Teacher, images: Tensor) -> Tensor:
        """Run a teacher at its own input size, in `teacher_dtype`, without gradients: float32[B, D]."""
        if next(teacher.trunk.parameters()).device != images.device:
            teacher.trunk.to(images.device)
        images = _resized(images, teacher.preprocessing.crop).to(self.teacher_dtype)
        # Training may have chosen an attention kernel for the student's few tokens; the teacher's are many.
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False), sdpa_kernel(ATTENTION):
            return teacher(images).float()


def _distance(own: Tensor, wanted: Tensor) -> Tensor:
    """Mean of 1 − cosine of float[..., D]."""
    return (1 - F.cosine_similarity(own, wanted, dim=-1)).mean()


def _resized(images: Tensor, size: int) -> Tensor:
    """Resize float[B, 3, H, W] to float[B, 3, size, size], bicubic and antialiased."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
