"""The limit on the tokens of a row, and the policy for samples that exceed it."""

from dataclasses import dataclass
from itertools import accumulate

from sparse_vlm.data.conversations.encoding import IGNORE, Row
from sparse_vlm.data.conversations.samples import Sample
from sparse_vlm.errors import UserError, check_choice
from sparse_vlm.vlm.language.turns import ChatFormat
from sparse_vlm.vlm.views import View

TOO_LONG_CHOICES = ("error", "skip", "truncate")


class TooLongError(UserError):
    """A sample that `LengthLimit` leaves out, independently of the policy for bad samples."""


@dataclass(frozen=True)
class LengthLimit:
    """The maximum length of a row, and the policy for longer samples.

    Attributes:
        tokens: maximum number of tokens in a row.
        too_long: "error": treat the sample as bad. "skip": leave it out. "truncate": end its row at the limit, or leave
            it out if no answer begins before that.
        of_model: the limit is the language model's number of positions, not --model_max_length; for messages.
    """

    tokens: int
    too_long: str = "error"
    of_model: bool = False

    def __post_init__(self) -> None:
        check_choice("--too_long", self.too_long, TOO_LONG_CHOICES)

    def __str__(self) -> str:
        return f"the language model's {self.tokens} positions" if self.of_model else f"--model_max_length {self.tokens}"

    def fit(self, row: Row, sample: Sample, chat: ChatFormat) -> tuple[Row, list[View]]:
        """Return the sample's row within the limit, and the views in it; see `Sample.views`.

        A truncated row ends at its last predicting position, like any other row. The tokens of an image or a region are
        never split, because no position before their last one predicts.

        Raises:
            TooLongError: the policy leaves the sample out.
            UserError: the policy is "error".
        """
        length, views = len(row.input_ids), sample.views(chat.tokens_per_image, chat.region_tokens)
        if length <= self.tokens:
            return row, views
        problem = f"{sample} has {length} tokens, more than {self}"
        if self.too_long == "error":
            ways = "Shorten" if self.of_model else "Raise the limit, shorten"
            raise UserError(f"{problem}. {ways} the sample, or use --too_long skip or truncate.")
        if self.too_long == "skip":
            raise TooLongError(f"{problem}.")
        end = max((place + 1 for place in range(self.tokens) if row.targets[place] != IGNORE), default=0)
        if end == 0:
            raise TooLongError(f"{problem}, and no answer begins before that.")
        cut = Row(row.input_ids[:end], row.targets[:end], row.positions[:end], row.segments[:end])
        visual = cut.input_ids.count(chat.image_token_id)
        return cut, views[: sum(total <= visual for total in accumulate(view.tokens for view in views))]
