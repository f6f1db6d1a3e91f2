"""Parsing of `--vision_tower`: a name with options, which LLaVA saves together in the config.json of a checkpoint."""

from dataclasses import dataclass

from sparse_vlm.encoder.preprocessing import ASPECTS
from sparse_vlm.encoder.variants import VARIANTS
from sparse_vlm.errors import UserError, unknown_choice

VARIANT_PREFIX, ENCODER_PREFIX = "sparseformer-", "sparseformer:"
OPTIONS = ("image_size", "tokens", "weights", "aspect")


def is_ours(name: object) -> bool:
    """Check if a value of `--vision_tower` names a SparseFormer; all others are left to LLaVA."""
    return isinstance(name, str) and name.startswith((VARIANT_PREFIX, ENCODER_PREFIX))


@dataclass(frozen=True)
class TowerName:
    """A parsed `--vision_tower`.

    Attributes:
        variant: name of a variant, or None for your own encoder.
        encoder: directory or hub id of your own encoder, or None for a variant.
        image_size: side of the image in pixels; None for the crop of the encoder's preprocessing.
        weights: weights of a variant: a released file, an encoder directory, a hub id, or "random" (seeded); None for
            the authors' released file.
        aspect: "crop" for the central square; "native" for the whole image in its own aspect ratio.
        tokens: number of latent tokens; None for the encoder's own.
    """

    variant: str | None
    encoder: str | None
    image_size: int | None = None
    weights: str | None = None
    aspect: str = "crop"
    tokens: int | None = None


def parse_tower_name(name: str) -> TowerName:
    """Parse e.g. "sparseformer-clip-l?image_size=336&weights=PATH" or "sparseformer:PATH_OR_ID?aspect=native"."""
    source, mark, query = name.partition("?")
    if mark and not query:
        raise UserError(f"The vision tower {name!r} has no options after the '?'.")
    options = _options(name, query)
    image_size = _whole_number(name, options, "image_size", 16, 8192)
    tokens = _whole_number(name, options, "tokens", 1, 8192)
    aspect = options.get("aspect", "crop")
    if aspect not in ASPECTS:
        raise unknown_choice(f"aspect in the vision tower {name!r}:", aspect, ASPECTS)
    if source.startswith(ENCODER_PREFIX):
        encoder = source.removeprefix(ENCODER_PREFIX)
        if not encoder:
            raise UserError(
                f"The vision tower {name!r} does not name an encoder: write sparseformer:DIRECTORY or :HUB_ID."
            )
        if "weights" in options:
            raise UserError(f"The vision tower {name!r} has its weights in {encoder}: weights= is only for variants.")
        return TowerName(None, encoder, image_size, None, aspect, tokens)
    if source not in VARIANTS:
        raise unknown_choice("vision tower", source, VARIANTS)
    return TowerName(source, None, image_size, options.get("weights"), aspect, tokens)


def _options(name: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in query.split("&") if query else []:
        key, _, value = pair.partition("=")
        if key not in OPTIONS:
            raise unknown_choice(f"option of the vision tower {name!r}:", key, OPTIONS)
        if key in options:
            raise UserError(f"The vision tower {name!r} has the option {key} twice.")
        if not value:
            raise UserError(f"The vision tower {name!r} has the option {key} without a value: write {key}=VALUE.")
        options[key] = value
    return options


def _whole_number(name: str, options: dict[str, str], option: str, low: int, high: int) -> int | None:
    """Value of an option, or None without the option."""
    text = options.get(option)
    if text is None:
        return None
    # Python converts no text of more than 4,300 digits
    if not text.isdecimal() or len(text) > len(str(high)) or not low <= int(text) <= high:
        raise UserError(
            f"The vision tower {name!r} has {option}={text}: it must be a whole number from {low} to {high}."
        )
    return int(text)
