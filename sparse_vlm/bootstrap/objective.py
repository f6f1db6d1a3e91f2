"""The bootstrapping task: student and frozen teacher in one module, images -> losses."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_vlm.bootstrap.teachers import Teacher
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.cortex import Cortex
from sparse_vlm.encoder.rois import sample_features, to_center_size
from sparse_vlm.errors import UserError
from sparse_vlm.recompute import RecomputesBlocks


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the loss. A term with weight 0 is not computed.

    Attributes:
        alignment: 1 − cosine of the final representations (arXiv 2312.01987 says which). The other terms are ours.
        token: 1 − cosine of each final latent token and the teacher's patch tokens at the centre of its RoI.
        feature: smooth L1 of the final representations, which constrains their length too.
        view: 1 − cosine of the final representation and the teacher's representation of a second view.
        entry: like `token`, for the tokens that enter the first inherited block in both models. It trains the new parts
            without a gradient through the inherited ones.
    """

    alignment: float = 1.0
    token: float = 0.0
    feature: float = 0.0
    view: float = 0.0
    entry: float = 0.0

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
        self.center: Tensor | None
        self.register_buffer("center", None, persistent=False)

    @property
    def teacher(self) -> Teacher:
        """The frozen teacher."""
        return self._unregistered[0]

    @property
    def image_size(self) -> int:
        """Side of the training crops in pixels: the larger one of the views."""
        return max(teacher.preprocessing.crop for teacher in self._unregistered)

    def center_on(self, images: Tensor) -> None:
        """Subtract the teacher's mean representation before computing the cosines of the loss (ours).

        If all representations are close to their mean, as in DINOv2, a student that always returns the mean has a small
        loss already, and the plain cosine provides little further signal.

        Args:
            images: typical images float[B, 3, S, S], over which the mean is taken.
        """
        self.center = self.target(images).mean(0)

    def target(self, images: Tensor) -> Tensor:
        """Target of the student for images float[B, 3, H, W]: the teacher's final representation, float32[B, D]."""
        return self._run(self.teacher, self.teacher, images).float()

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
        pooled, patches = output.pooled.float(), None
        first = self.teacher.cortex.depth - self.student.config.cortex.depth
        recorded: AbstractContextManager[list[Tensor]]
        recorded = self.teacher.tokens_entering(first) if self.weights.entry else nullcontext([])
        with recorded as entering:
            if self.weights.token:
                target, patches = self._with_tokens(images)
            else:
                target = self.target(images)
        prefix, terms = self.student.num_prefix_tokens, {}
        if self.weights.alignment:
            terms["alignment"] = self._distance(pooled, target)
        if self.weights.feature:
            terms["feature"] = F.smooth_l1_loss(pooled, target)
        if patches is not None:
            terms["token"] = self._token_loss(output.tokens[:, prefix:], output.rois[-1], patches)
        if self.weights.view:
            second = self._unregistered[1]
            terms["view"] = self._distance(pooled, self._run(second, second, pixel_values).float())
        if self.weights.entry:
            latent = output.hidden_states[0][:, prefix:]
            terms["entry"] = self._token_loss(latent, output.rois[-1], entering[0].float())
        weights = asdict(self.weights)
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        named = {f"{name}_loss": term.detach() for name, term in terms.items()}
        return {"loss": loss, **named, "cosine": F.cosine_similarity(pooled.detach(), target, dim=-1)}

    def _distance(self, pooled: Tensor, target: Tensor) -> Tensor:
        """Mean of 1 − cosine, of deviations from the center if there is one."""
        if self.center is not None:
            pooled, target = pooled - self.center, target - self.center
        return (1 - F.cosine_similarity(pooled, target, dim=-1)).mean()

    def _token_loss(self, latent: Tensor, rois: Tensor, tokens: Tensor) -> Tensor:
        """Mean of 1 − cosine over all latent tokens.

        No gradient reaches the RoIs, which would otherwise move to places where the teacher is easy to imitate.

        Args:
            latent: the student's latent tokens float[B, n, C].
            rois: float32[B, n, 4].
            tokens: the teacher's tokens float32[B, prefix + rows · columns, C].
        """
        rows, columns = self.teacher.grid
        patches = tokens[:, -rows * columns :].transpose(1, 2).unflatten(-1, (rows, columns))
        centers = to_center_size(rois.detach().float())[0]
        wanted = sample_features(patches, centers.unsqueeze(2), padding="border").squeeze(2)
        return (1 - F.cosine_similarity(latent.float(), wanted, dim=-1)).mean()

    def _with_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's final representation float32[B, D] and its tokens before the final norm, in one pass."""
        tokens = self._run(self.teacher, self.teacher.tokens, images)
        trunk = self.teacher.trunk
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return trunk.forward_head(trunk.norm(tokens)).float(), tokens.float()

    def _run(self, teacher: Teacher, output: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Run a teacher at its own input size, in `teacher_dtype`, without gradients."""
        if next(teacher.trunk.parameters()).device != images.device:
            teacher.trunk.to(images.device)
        images = _resized(images, teacher.preprocessing.crop).to(self.teacher_dtype)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return output(images)


def _resized(images: Tensor, size: int) -> Tensor:
    """Resize float[B, 3, H, W] to float[B, 3, size, size], bicubic and antialiased."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
