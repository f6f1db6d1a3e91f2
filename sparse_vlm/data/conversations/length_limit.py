"""Rows within a limit on their tokens, and the policy for samples that exceed it."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from sparse_vlm.data.conversations.encoding import IGNORE, Row, encode, encode_independent
from sparse_vlm.data.conversations.samples import Sample
from sparse_vlm.errors import UserError, check_choice
from sparse_vlm.vlm.language.turns import ChatFormat
from sparse_vlm.vlm.views import View

TOO_LONG_CHOICES = ("error", "skip", "truncate")
TIME_TOKENS = 16  # bytes of the time of a frame, at most


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
        length = len(row.input_ids)
        views = sample.views(chat.tokens_per_image, chat.region_tokens, chat.tokens_per_frame)
        if length <= self.tokens:
            return row, views
        problem = f"{sample} has {length} tokens, more than {self}"
        if self.too_long == "error":
            ways = "Shorten" if self.of_model else "Raise the limit, shorten"
            fewer = ", lower --max_frames, --fps or --frame_tokens" * bool(sample.videos)
            raise UserError(f"{problem}. {ways} the sample{fewer}, or use --too_long skip or truncate.")
        if self.too_long == "skip":
            raise TooLongError(f"{problem}.")
        end = max((place + 1 for place in range(self.tokens) if row.targets[place] != IGNORE), default=0)
        if end == 0:
            raise TooLongError(f"{problem}, and no answer begins before that.")
        cut = Row(row.input_ids[:end], row.targets[:end], row.positions[:end], row.segments[:end])
        visual = cut.input_ids.count(chat.image_token_id)
        return cut, views[: sum(total <= visual for total in accumulate(view.tokens for view in views))]


class Rows:
    """Makes the rows of a data set.

    Args:
        chat: tokenizer, template, and the largest number of tokens per image, with which lengths are checked.
        limit: maximum length of a row.
        independent_turns: the turns of a sample do not attend to each other (VQA on one image).
        max_frames: most frames of a video; None: unknown.
    """

    def __init__(
        self, chat: ChatFormat, limit: LengthLimit, *, independent_turns: bool, max_frames: int | None = None
    ) -> None:
        self.chat, self.limit, self.independent_turns = chat, limit, independent_turns
        self.max_frames = max_frames
        self._encode = encode_independent if independent_turns else encode
        self._chats = {chat.tokens_per_image: chat}

    def row(self, sample: Sample, tokens: int) -> tuple[Row, list[View]]:
        """Return a sample's row with `tokens` visual tokens per image, and its views; see `LengthLimit.fit`."""
        if tokens not in self._chats:  # kept, because it remembers the control tokens
            self._chats[tokens] = replace(self.chat, tokens_per_image=tokens)
        chat = self._chats[tokens]
        return self.limit.fit(self._encode(sample, chat), sample, chat)

    def measured(self, sample: Sample) -> tuple[Row, list[View], int]:
        """Return a sample's row with the largest number of tokens, its views, and its length without the limit."""
        full = self._encode(sample, self.chat)
        return *self.limit.fit(full, sample, self.chat), len(full.input_ids)

    def surely_fits(self, sample: Sample) -> bool:
        """Return whether a row must lie within the limit, in a hundredth of the time of counting its tokens."""
        return (self.max_frames is not None or not sample.videos) and self.most_tokens(sample) <= self.limit.tokens

    def most_tokens(self, sample: Sample) -> int:
        """Return an upper bound of the tokens of a row.

        A token of text stands for at least one byte. The template's own tokens are counted on a short conversation.
        """
        copies = sum(role == "assistant" for role, _ in sample.turns) if self.independent_turns else 1
        text = sum(len(words.encode("utf-8", "surrogatepass")) + self._turn_tokens for _, words in sample.turns)
        system = sum(len(words.encode("utf-8", "surrogatepass")) for role, words in sample.turns if role == "system")
        frames = len(sample.videos) * (self.max_frames or 0) * (self.chat.tokens_per_frame + TIME_TOKENS)
        repeated = system + self._turn_tokens + len(sample.images) * self.chat.tokens_per_image + frames
        return text + copies * repeated + len(sample.regions) * self.chat.region_tokens

    @cached_property
    def _turn_tokens(self) -> int:
        return len(self.chat.tokens(self.chat.render((("user", "a"), ("assistant", "b")))))
