"""What becomes of samples with more tokens than a row may have."""

from collections.abc import Sequence
from dataclasses import dataclass

from sparse_vlm.data.conversations.encoding import IGNORE, Row, Sample
from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.vlm.language.turns import ChatFormat

TOO_LONG_CHOICES = ("error", "skip", "truncate")


class TooLongError(UserError):
    """A sample that `LengthLimit` says to leave out, whatever is done with bad samples."""


@dataclass(frozen=True)
class LengthLimit:
    """How many tokens a row may have, and what becomes of a sample with more.

    Attributes:
        tokens: the most in a row.
        too_long: "error": the sample is a bad one; "skip": it is left out; "truncate": its row ends at the limit, and
            it is left out if no answer begins before.
        of_model: whether the language model's positions are the limit, not --model_max_length; for messages.

    Raises:
        UserError: `too_long` is something else.
    """

    tokens: int
    too_long: str = "error"
    of_model: bool = False

    def __post_init__(self) -> None:
        if self.too_long not in TOO_LONG_CHOICES:
            raise unknown_choice("--too_long", self.too_long, TOO_LONG_CHOICES)

    def __str__(self) -> str:
        return f"the language model's {self.tokens} positions" if self.of_model else f"--model_max_length {self.tokens}"

    def fit(self, row: Row, sample: Sample, chat: ChatFormat) -> tuple[Row, Sequence[str]]:
        """The sample's row within the limit, and the names of the images in it.

        A truncated row ends, like any other, at its last predicting position. An image's tokens are never cut in two,
        since no position before their last one predicts.

        Raises:
            TooLongError: see `too_long`.
            UserError: the same.
        """
        length = len(row.input_ids)
        if length <= self.tokens:
            return row, sample.images
        problem = f"Sample {sample.id} has {length} tokens, more than {self}"
        if self.too_long == "error":
            ways = "Shorten" if self.of_model else "Raise the limit, shorten"
            raise UserError(f"{problem}. {ways} the sample, or use --too_long skip or truncate.")
        if self.too_long == "skip":
            raise TooLongError(f"{problem}.")
        end = max((place + 1 for place in range(self.tokens) if row.targets[place] != IGNORE), default=0)
        if end == 0:
            raise TooLongError(f"{problem}, and no answer begins before that.")
        images = row.input_ids[:end].count(chat.image_token_id) // chat.tokens_per_image
        cut = Row(row.input_ids[:end], row.targets[:end], row.positions[:end], row.segments[:end])
        return cut, sample.images[:images]
