"""Configuration of a SparseFormer: stem, focusing transformer, cortex, preprocessing. Checked at construction."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

from sparse_vlm.encoder.preprocessing import Preprocessing
from sparse_vlm.encoder.token_counts import TokenCounts
from sparse_vlm.errors import UserError, unknown_choice

Part = TypeVar("Part")


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


@dataclass(frozen=True)
class StemConfig:
    """Configuration of the stem, an early convolution.

    Attributes:
        channels: channels C of the feature map (96 in v1, 64 in the bootstrapped models).
    """

    channels: int = 64

    def __post_init__(self) -> None:
        _require(self.channels > 0, f"stem.channels must be positive, got {self.channels}.")


@dataclass(frozen=True)
class FocusConfig:
    """Configuration of the focusing transformer: latent tokens and their RoIs.

    Attributes:
        generation: "v1" (arXiv 2304.03768) or "bootstrapped" (arXiv 2312.01987); they differ in the order of
            operations, the non-linearities of the mixing, the RoI encoding and the padding of the sampling.
        tokens: number of latent tokens n, without CLS.
        width: channels of the repeated unit.
        heads: attention heads of the repeated unit.
        points: sampling points P per token.
        repeats: number of times that the repeated unit runs, with shared weights.
        generator_width: inner width of the generator of mixing parameters in the repeated unit.
        last_heads: attention heads of the last unit in v1; 0 in the bootstrapped models, which have no attention there.
        last_generator_width: inner width of the generator in the last unit.
        eps: epsilon of every LayerNorm in the focusing transformer.
    """

    generation: Literal["v1", "bootstrapped"]
    tokens: int
    width: int
    heads: int
    points: int = 16
    repeats: int = 4
    generator_width: int = 128
    last_heads: int = 0
    last_generator_width: int = 128
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.generation not in ("v1", "bootstrapped"):
            raise unknown_choice("focus.generation", self.generation, ("v1", "bootstrapped"))
        for name in ("tokens", "width", "heads", "repeats", "generator_width", "last_generator_width"):
            value = getattr(self, name)
            _require(value > 0, f"focus.{name} must be positive, got {value}.")
        _require(
            self.points >= 2,
            f"focus.points must be at least 2, because their spread is normalised, got {self.points}.",
        )
        _require(self.width % 8 == 0, f"focus.width must be a multiple of 8 (RoI encoding), got {self.width}.")
        _require(
            self.width % self.heads == 0,
            f"focus.width {self.width} is not divisible by focus.heads {self.heads}.",
        )
        needs_heads = self.generation == "v1"
        _require(
            needs_heads == (self.last_heads > 0),
            f"focus.last_heads is {self.last_heads}: it must be positive in v1 and 0 in the bootstrapped models, "
            "whose last unit has no attention.",
        )


@dataclass(frozen=True)
class CortexConfig:
    """Configuration of the cortex: inherited blocks, built by timm.

    Attributes:
        architecture: timm name of the VisionTransformer that provides the blocks, norm, pooling and head.
        depth: number of blocks.
        width: channels C.
        heads: attention heads.
        head_dim: outputs D of the head or projection; 0 for no head, where the pooled embedding has C channels.
        head_bias: True if the head has a bias.
        options: further keyword arguments of `timm.create_model` (JSON values), e.g. {"init_values": 1e-5}.
        norm_eps: epsilon of the LayerNorms; None for the default of the architecture.
    """

    architecture: str
    depth: int
    width: int
    heads: int
    head_dim: int = 0
    head_bias: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    norm_eps: float | None = None

    def __post_init__(self) -> None:
        for name in ("depth", "width", "heads"):
            value = getattr(self, name)
            _require(value > 0, f"cortex.{name} must be positive, got {value}.")
        _require(self.head_dim >= 0, f"cortex.head_dim must not be negative, got {self.head_dim}.")
        _require(
            self.width % self.heads == 0,
            f"cortex.width {self.width} is not divisible by cortex.heads {self.heads}.",
        )
        _require(self.width % 8 == 0, f"cortex.width must be a multiple of 8 (RoI encoding), got {self.width}.")
        object.__setattr__(self, "options", dict(self.options))


@dataclass(frozen=True)
class SparseFormerConfig:
    """Complete configuration of a `SparseFormer`, stored in config.json of an encoder directory.

    Attributes:
        stem, focus, cortex: configuration of the three parts.
        preprocessing: preprocessing that the weights expect.
        teacher: name of the teacher, for information only (e.g. "timm:vit_small_patch14_dinov2"); "" if unknown.
        licence: licence of the weights; "" if unknown.
        trained_tokens: numbers of latent tokens that the weights were trained with, in the notation of `TokenCounts`
            ("4-64"); "" for `focus.tokens` alone.
    """

    stem: StemConfig
    focus: FocusConfig
    cortex: CortexConfig
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    teacher: str = ""
    licence: str = ""
    trained_tokens: str = ""

    @cached_property  # read at every forward pass that requests a number of tokens
    def token_counts(self) -> TokenCounts:
        """Numbers of latent tokens that the weights were trained with."""
        return TokenCounts.parse(self.trained_tokens or str(self.focus.tokens))

    def to_dict(self) -> dict[str, Any]:
        """Convert the configuration to JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SparseFormerConfig":
        """Convert JSON values to a configuration; the inverse of `to_dict`.

        Raises:
            UserError: a field is unknown, missing or has the wrong type.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"An encoder configuration must be a JSON object, got {values!r}.")
        nested = {
            "stem": StemConfig,
            "focus": FocusConfig,
            "cortex": CortexConfig,
            "preprocessing": Preprocessing,
        }
        parts = {
            name: _construct(nested[name], value, f"{name}.") if name in nested else value
            for name, value in values.items()
        }
        return _construct(cls, parts, "")


def _construct(part: type[Part], values: Mapping[str, Any], prefix: str) -> Part:
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix.rstrip('.')} must be a JSON object, got {values!r}.")
    types = {item.name: item.type for item in fields(part)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in types:
            raise unknown_choice("configuration field", prefix + name, [prefix + known for known in types])
        if not _is_a(value, types[name]):
            raise UserError(f"{prefix}{name} has the wrong type or length: {value!r}.")
    try:
        return part(**values)
    except TypeError as error:
        raise UserError(f"The configuration is incomplete: {error}.") from error


def _is_a(value: object, kind: Any) -> bool:
    """Check a JSON value, or a part made from one, against the type of a field."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_is_a(value, each) for each in inner)
    if origin is tuple:
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(_is_a, value, inner))
    if origin is Literal:
        return isinstance(value, str)
    if isinstance(value, bool):  # bool is a subclass of int
        return kind is bool
    return isinstance(value, int | float if kind is float else origin or kind)
