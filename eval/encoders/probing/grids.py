"""Rebuild a teacher's patch tokens from a few tokens and their RoIs, by a linear map fitted in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_vlm.encoder.rois import lay_out_rois, to_center_size

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge, in variances of an input channel


def read_at_patches(tokens: Tensor, rois: Tensor, places: Tensor) -> Tensor:
    """Read tokens at each patch position, by a fixed interpolation without parameters.

    A RoI is a normal distribution around its centre whose deviation is half its width and height, at least half a
    patch. A patch reads the mean of all tokens, weighted by their densities at its centre.

    Args:
        tokens: float[B, n, C].
        rois: float32[B, n, 4].
        places: the P patches as RoIs, float32[P, 4].

    Returns:
        float[B, P, C]
    """
    center, size = to_center_size(rois)
    patch_center, patch_size = to_center_size(places)
    deviation = torch.maximum(size.abs(), patch_size[0]) / 2
    distance = (patch_center[None, :, None] - center[:, None]) / deviation[:, None]
    density = -distance.square().sum(-1) / 2 - deviation.log().sum(-1)[:, None]
    return density.softmax(-1).to(tokens.dtype) @ tokens


def pool_to_cells(patches: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Average patches over the cells of `lay_out_rois(count)`, weighted by the area inside a cell.

    Args:
        patches: float[B, P, C].
        places: the patches as RoIs, float32[P, 4].
        count: number of cells n.

    Returns:
        float[B, n, C], and the cells as RoIs float32[B, n, 4].
    """
    cells = lay_out_rois(count).to(patches.device)
    low = torch.maximum(cells[:, None, :2], places[None, :, :2])
    high = torch.minimum(cells[:, None, 2:], places[None, :, 2:])
    area = (high - low).clamp_min(0).prod(-1)
    weights = (area / area.sum(1, keepdim=True)).to(patches.dtype)
    return weights @ patches, cells.expand(len(patches), -1, -1)


@dataclass(frozen=True)
class Moments:
    """Sums over images from which a linear map of x to y is fitted, and its errors follow. All float64.

    Attributes:
        images: number of images.
        x, y: [P, X] and [P, Y], sums at each of P positions.
        xx, xy: [X, X] and [X, Y], sums of products over images and positions.
        yy: [Y], sum of squares.
    """

    images: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Moments":
        """Sum over float[B, P, X] and float[B, P, Y]."""
        x, y = x.double(), y.double()
        flat_x, flat_y = x.flatten(0, 1), y.flatten(0, 1)
        return cls(len(x), x.sum(0), y.sum(0), flat_x.T @ flat_x, flat_x.T @ flat_y, flat_y.square().sum(0))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.images + other.images,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def around(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return xx, xy and yy of the deviations from [P, X] and [P, Y]."""
        xx = self.xx - x.T @ self.x - self.x.T @ x + self.images * x.T @ x
        xy = self.xy - x.T @ self.y - self.x.T @ y + self.images * x.T @ y
        yy = self.yy - (2 * y * self.y).sum(0) + self.images * y.square().sum(0)
        return xx, xy, yy

    def channels(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance of y over images and positions, [Y] each."""
        count = self.images * len(self.y)
        mean = self.y.sum(0) / count
        return mean, (self.yy / count - mean.square()).clamp_min(torch.finfo(torch.float64).eps)


@dataclass(frozen=True)
class LinearMap:
    """y at a position = its mean there + the deviation of x from its mean there · weights. All float64.

    Attributes:
        weights: [X, Y], the same at all positions.
        x, y: [P, X] and [P, Y], means over the images that the map was fitted to.
    """

    weights: Tensor
    x: Tensor
    y: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """float[B, P, X] -> float64[B, P, Y]"""
        return self.y + (x.double() - self.x) @ self.weights

    def squared_errors(self, moments: Moments) -> Tensor:
        """Return the sum of squared errors of the images of `moments`, [Y]."""
        xx, xy, yy = moments.around(self.x, self.y)
        return yy - 2 * (self.weights * xy).sum(0) + (self.weights * (xx @ self.weights)).sum(0)


def fit(moments: Moments, strength: float) -> LinearMap:
    """Fit a linear map by ridge regression; the penalty counts in variances of each channel of x."""
    x, y = moments.x / moments.images, moments.y / moments.images
    xx, xy, _ = moments.around(x, y)
    count = moments.images * len(x)
    deviation = (xx.diagonal() / count).clamp_min(torch.finfo(torch.float64).eps).sqrt()
    correlation = xx / count / deviation / deviation[:, None]
    penalty = strength * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
    weights = torch.linalg.solve(correlation + penalty, xy / count / deviation[:, None])
    return LinearMap(weights / deviation[:, None], x, y)


def choose_strength(fitted: Moments, held_out: Moments, strengths: Sequence[float] = STRENGTHS) -> float:
    """Return the strength whose map, fitted to `fitted`, has the least error on `held_out`, in variances of y."""
    variance = fitted.channels()[1]
    errors = [(fit(fitted, each).squared_errors(held_out) / variance).sum() for each in strengths]
    return strengths[int(torch.stack(errors).argmin())]
