"""Start and end of the assistant's turns in a chat template, for labels and generation."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase

from sparse_vlm.errors import UserError, one_line
from sparse_vlm.vlm.language.control_tokens import IMAGE_TOKEN, VIDEO_TOKEN, control_tokens
from sparse_vlm.vlm.language.literal_text import encode, escape
from sparse_vlm.vlm.views import PLACEHOLDER

Turns = Sequence[tuple[str, str]]  # (role, text), with the chat template's role names

ENDLESS = (
    "The chat template writes no special token after the assistant's answer, so the model could not learn to stop. "
    "Use a template that ends each answer with the tokenizer's end-of-turn or eos token."
)
# transformers' markers of answers, which other Jinja environments may not know
GENERATION = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
# A conversation for probing templates. None of its texts is part of another.
QUESTION, ANSWER, NEXT_QUESTION, NEXT_ANSWER = "Which shape is it?", "A red circle.", "Sure?", "Yes, quite."
CONVERSATION = (("user", QUESTION), ("assistant", ANSWER), ("user", NEXT_QUESTION), ("assistant", NEXT_ANSWER))


@contextmanager
def template_refusals() -> Iterator[None]:
    """Turn an error raised by a chat template, such as Gemma's for a system turn, into a UserError."""
    try:
        yield
    except jinja2.TemplateError as error:
        raise UserError(f"The chat template refuses the conversation: {one_line(error)}.") from error


def render(tokenizer: PreTrainedTokenizerBase, template: str, turns: Turns, *, open_answer: bool = False) -> str:
    """Render a conversation. `open_answer` appends the opening of an assistant turn, as for generation.

    Raises:
        UserError: the template refuses the conversation.
    """
    messages: Any = [{"role": role, "content": text} for role, text in turns]
    with template_refusals():
        text: Any = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=open_answer
        )
    return text


class AssistantTurn(NamedTuple):
    """The text that a template writes around answers.

    Attributes:
        prompt: text between a question and the start of generation.
        last: text between the last question and its answer.
        earlier: text between an earlier question and its answer.
        last_end: text after the last answer.
        earlier_end: text between an earlier answer and the next question.
    """

    prompt: str
    last: str
    earlier: str
    last_end: str
    earlier_end: str

    @property
    def openings(self) -> set[str]:
        """The distinct openings of answers, one if the template is consistent. Trailing white space is part of an
        answer's first token and is removed."""
        return {self.prompt.rstrip(), self.last.rstrip(), self.earlier.rstrip()}


def assistant_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> AssistantTurn:
    """Find the text that a template writes around answers by rendering a conversation.

    Raises:
        UserError: the template refuses the conversation, or does not print a question or an answer.
    """
    prompt = render(tokenizer, template, CONVERSATION[:1], open_answer=True)
    last = render(tokenizer, template, CONVERSATION[:2])
    earlier = render(tokenizer, template, CONVERSATION[:3])
    for text, words in (
        (prompt, (QUESTION,)),
        (last, (QUESTION, ANSWER)),
        (earlier, (QUESTION, ANSWER, NEXT_QUESTION)),
    ):
        for each in words:
            if each not in text:
                raise UserError(
                    f"The chat template does not print the text of every turn: {each!r} is not in {text!r}."
                )
    return AssistantTurn(
        prompt=prompt.split(QUESTION, 1)[1],
        last=last.split(QUESTION, 1)[1].split(ANSWER, 1)[0],
        earlier=earlier.split(QUESTION, 1)[1].split(ANSWER, 1)[0],
        last_end=last.split(ANSWER, 1)[1],
        earlier_end=earlier.split(ANSWER, 1)[1].split(NEXT_QUESTION, 1)[0],
    )


def end_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """Return the ids of the tokens that end the assistant's turn under a template, where generation must stop.

    Raises:
        UserError: there is none; see also `assistant_turn`.
    """
    turn = assistant_turn(tokenizer, template)
    found = [end_text(tokenizer, end) for end in (turn.last_end, turn.earlier_end)]
    if found[0] is None:
        raise UserError(ENDLESS)
    ids: Any = tokenizer.convert_tokens_to_ids([end for end in dict.fromkeys(found) if end is not None])
    return ids


def end_text(tokenizer: PreTrainedTokenizerBase, after: str) -> str | None:
    """Return the first control token in `after`, the text after an answer, or None."""
    control = {token: text for text, token in control_tokens(tokenizer).items()}
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return next((control[token] for token in ids if token in control), None)


@dataclass(frozen=True)
class ChatFormat:
    """Converts conversations to tokens.

    Attributes:
        tokenizer: a fast tokenizer.
        chat_template: the Jinja text.
        image_token_id: the id of the placeholder token.
        tokens_per_image: the number of tokens that replace one `<image>`.
        plain: LLaVA's format for alignment, where the only answer ends with the text, without a special token.
        region_tokens: the number of tokens that replace one `<region>`.
        frame_tokens: the number of tokens of a frame of a video; None: that of an image.
    """

    tokenizer: PreTrainedTokenizerBase
    chat_template: str
    image_token_id: int
    tokens_per_image: int
    plain: bool = False
    region_tokens: int = 9
    frame_tokens: int | None = None

    @property
    def tokens_per_frame(self) -> int:
        """The number of tokens of a frame of a video."""
        return self.tokens_per_image if self.frame_tokens is None else self.frame_tokens

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """Text -> id of the tokenizer's special tokens, without the image placeholder."""
        return {text: i for text, i in control_tokens(self.tokenizer).items() if i != self.image_token_id}

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The ids of `control_tokens`."""
        return frozenset(self.control_tokens.values())

    @cached_property
    def control_text(self) -> re.Pattern[str]:
        """Matches any control token in a text."""
        return re.compile("|".join(map(re.escape, self.control_tokens)) or r"(?!)")  # the second never matches

    def render(self, turns: Turns, *, open_answer: bool = False) -> str:
        """Render a conversation; see the function `render`."""
        return render(self.tokenizer, self.chat_template, turns, open_answer=open_answer)

    def tokens(self, text: str, videos: Sequence[str] = ()) -> list[int]:
        """Return the ids of a rendered conversation, with each placeholder as its number of image tokens.

        Args:
            text: of the conversation.
            videos: what replaces each `<video>`, with an `<image>` for each frame; see `frames_as_text`.
        """
        remaining, widths = iter(videos), []

        def expand(placeholder: re.Match[str]) -> str:
            if placeholder[0] == VIDEO_TOKEN:
                frames = next(remaining)
                widths.extend([self.tokens_per_frame] * frames.count(IMAGE_TOKEN))
                return frames
            widths.append(self.tokens_per_image if placeholder[0] == IMAGE_TOKEN else self.region_tokens)
            return IMAGE_TOKEN

        ids = encode(self.tokenizer, PLACEHOLDER.sub(expand, text))
        counts = iter(widths)
        return [token for token in ids for _ in range(next(counts) if token == self.image_token_id else 1)]

    def answers(self, turns: Turns, videos: Sequence[str] = ()) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the conversation's token ids, and for each answer the indices of its first token and its end token.

        Control tokens in the text of a turn are read as letters.

        Args:
            turns: the conversation.
            videos: see `tokens`.

        Raises:
            UserError: the template refuses the conversation, or the tokens of an answer cannot be found: the rendering
                of a conversation's beginning changes with the turns that follow, there is no text before the answer,
                no special token ends it, or the template prints something else instead.
        """
        turns = [(role, escape(words, self.control_tokens)) for role, words in turns]
        text = self.render(turns)
        ids, spans = self.tokens(text, videos), []
        for turn, (role, words) in enumerate(turns):
            if role != "assistant":
                continue
            prompt = self.render(turns[:turn], open_answer=True)
            start = len(before := self.tokens(prompt, videos))
            if ids[:start] != before or not text.startswith(prompt):
                raise UserError(
                    f"The chat template or tokenizer writes the prompt before turn {turn} differently once the answer "
                    "follows, so training would not match inference. Use another chat template."
                )
            if start == 0:
                raise UserError(f"The chat template writes nothing before the answer of turn {turn}.")
            self._check_printed(text[len(prompt) :], words)
            ends = (i for i in range(start, len(ids)) if ids[i] in self.control_ids)
            spans.append((start, len(ids) - 1 if self.plain else next(ends)))
        return ids, spans

    def _check_printed(self, rest: str, answer: str) -> None:
        """Raise UserError unless `rest` begins with the answer and, unless the format is plain, a control token."""
        end = None if self.plain else self.control_text.search(rest)
        if end is None and not self.plain:
            raise UserError(ENDLESS)
        printed = rest[: end.start()] if end else rest
        if printed.strip() != answer.strip():
            raise UserError(
                f"The chat template writes {printed.strip()!r:.80} where the answer {answer.strip()!r:.80} belongs, so "
                "training would not teach it. Use a template that prints answers unchanged after their opening."
            )


def marks_answers(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Return whether a template's `{% generation %}` encloses each answer with the token that ends it, and no more."""
    if not GENERATION.search(template):
        return False
    messages: Any = [{"role": role, "content": text} for role, text in CONVERSATION]
    with template_refusals():
        rendered: Any = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    _, spans = ChatFormat(tokenizer, template, image_token_id=-1, tokens_per_image=1).answers(CONVERSATION)
    marked = [place for place, mark in enumerate(rendered["assistant_masks"]) if mark]
    return marked == [place for start, end in spans for place in range(start, end + 1)]


def check_round_trip(chat: ChatFormat) -> None:
    """Check that training sees a template's prompt, answer and end as generation does, and that labels decode to the
    answer.

    Raises:
        UserError: they differ; see `ChatFormat.answers`.
    """
    placeholder = chat.tokenizer.convert_ids_to_tokens(chat.image_token_id)
    with_image = (("user", f"{placeholder}\n{QUESTION}"), *CONVERSATION[1:])
    for turns in (CONVERSATION[:2], with_image[:2], CONVERSATION, with_image):
        ids, spans = chat.answers(turns)
        for (_, answer), (start, end) in zip(turns[1::2], spans, strict=True):
            labelled, expected = (
                str(chat.tokenizer.decode(tokens)).strip()
                for tokens in (ids[start:end], chat.tokenizer(answer, add_special_tokens=False)["input_ids"])
            )
            if labelled != expected:  # compared after tokenization: a tokenizer may not know every letter
                raise UserError(f"The chat template turns the answer {answer!r} into {labelled!r}. Use another one.")
