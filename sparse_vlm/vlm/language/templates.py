"""Chat templates: LLaVA's conversation formats, and the preparation of a language model's own template.

LLaVA's formats render the texts of its `conversation.py` after the tokenizer's bos token, as
tests/vlm/language/test_templates.py checks. They serve language models without a template (Vicuna) and LLaVA's data.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.control_tokens import IMAGE_TOKEN
from sparse_vlm.vlm.language.turns import (
    GENERATION,
    AssistantTurn,
    assistant_turn,
    end_text,
    marks_answers,
    template_refusals,
)

# system prompt, then "USER: Q ASSISTANT: A</s>USER: …" with the tokenizer's own eos token
LLAVA_V1 = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] -%}{%- set dialogue = messages[1:] -%}"
    "{%- else -%}"
    "{%- set system = 'A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user\\'s questions.' -%}"
    "{%- set dialogue = messages -%}"
    "{%- endif -%}"
    "{{- bos_token + system + ' ' -}}"
    "{%- for message in dialogue -%}"
    "{%- if message['role'] == 'user' -%}{{- 'USER: ' + message['content'] + ' ' -}}"
    "{%- else -%}{{- 'ASSISTANT:' -}}"
    "{%- generation -%}{{- ' ' + message['content'] + eos_token -}}{%- endgeneration -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)
# for alignment only: the image, then its caption and a newline, without the question and without eos
LLAVA_PLAIN = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '<image>' * message['content'].count('<image>') -}}"
    "{%- else -%}{{- message['content'] + '\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
)
# Names for --chat_template. LLAVA_PLAIN does not end turns, so a model could not learn to stop under it.
CHAT_TEMPLATES = {"llava_v1": LLAVA_V1}

# Prepended to a template that prints the content of a message as text: converts lists of parts to text. The images of a
# turn are moved before its text, as in training, unless there is text between images.
PARTS_TO_TEXT = """\
{%- set prepared = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is iterable and message['content'] is not string -%}
{%- set content = namespace(images='', words='', mixed='', groups=0, before='') -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set content.groups = content.groups + (content.before != 'image') -%}
{%- set content.images = content.images + '<image>\n' -%}
{%- set content.mixed = content.mixed + '<image>\n' -%}
{%- else -%}
{%- set content.words = content.words + part['text'] -%}
{%- set content.mixed = content.mixed + part['text'] -%}
{%- endif -%}
{%- set content.before = part['type'] -%}
{%- endfor -%}
{%- set text = content.mixed if content.groups > 1 else content.images + content.words -%}
{%- set prepared.messages = prepared.messages + [dict(message, content=text)] -%}
{%- else -%}
{%- set prepared.messages = prepared.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = prepared.messages +%}"""
# Prints the output `shown` of a template in pieces, so that `{% generation %}` encloses each answer and its end.
# `rest.text` is what follows the messages before. Their texts are skipped first, as they may contain an opening.
MARK_ANSWERS = """\
{%- set rest = namespace(text=shown) -%}
{%- for message in messages -%}
{%- set answered = message['role'] == 'assistant' -%}
{%- set words = message['content'] | trim if message['content'] is string else '' -%}
{%- set start = OPENING if answered else words -%}
{%- if start and start in rest.text -%}
{%- set parts = rest.text.split(start) -%}
{{- parts[0] + start -}}
{%- set rest.text = parts[1:] | join(start) -%}
{%- if answered -%}
{%- set answer = namespace(text=rest.text) -%}
{%- for end in ENDS -%}
{%- set before = rest.text.split(end)[0] + end -%}
{%- if before | length < answer.text | length -%}{%- set answer.text = before -%}{%- endif -%}
{%- endfor -%}
{%- generation -%}{{- answer.text -}}{%- endgeneration -%}
{%- set rest.text = rest.text[answer.text | length:] -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{{- rest.text -}}
"""
# variables with which templates of thinking models write a closed, empty block of thoughts
THINKING = ("enable_thinking", "thinking")
TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


def prepare_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | Path | None = None) -> str:
    """Prepare the chat template of a model directory.

    - `[{"type": "image"}, {"type": "text", "text": Q}]`, the same parts in another order, and "<image>\\nQ" render to
      the same text.
    - An answer has the same opening in generation, at the end of a conversation and in its middle. For a model that can
      think the opening includes a closed, empty block of thoughts.
    - `{% generation %}` marks the answers, for `return_assistant_tokens_mask` and other programs' losses.
    - Dates become the date of preparation.

    A template that fulfils this already is returned unchanged.

    Args:
        tokenizer: the LLM's tokenizer; its own template is the default.
        chat_template: a Jinja file, Jinja text, or a name in CHAT_TEMPLATES.
    """
    template = _own_template(tokenizer) if chat_template is None else _read_template(chat_template)
    template = TODAY.sub(lambda call: json.dumps(datetime.now().strftime(call[2])), template)
    template = "".join(f"{{%- set {name} = false +%}}" for name in THINKING if name in template) + template
    for placing in ("", PARTS_TO_TEXT):
        if _places_image(tokenizer, placing + template):
            return _with_marked_answers(tokenizer, template, placing)
    raise UserError(
        "The chat template cannot place an image: it must print the content of a user's message, e.g. "
        "\"{% for message in messages %}{{ message['content'] }}{% endfor %}\"."
    )


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    own = tokenizer.chat_template
    if isinstance(own, dict) and "default" not in own:
        raise UserError(
            f"The LLM's tokenizer has the chat templates {', '.join(own)} and none named default. Write the one to use "
            "to a Jinja file and give it with --chat_template."
        )
    if not own:
        raise UserError(
            "The LLM's tokenizer has no chat template: give one with --chat_template, a Jinja file or "
            f"{' or '.join(CHAT_TEMPLATES)} (Vicuna's)."
        )
    return tokenizer.get_chat_template()


def _read_template(chat_template: str | Path) -> str:
    if isinstance(chat_template, str) and ("{{" in chat_template or "{%" in chat_template):
        return chat_template
    if chat_template in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[str(chat_template)]
    if not Path(chat_template).is_file():
        raise UserError(f"There is no chat template file {chat_template}; known names: {', '.join(CHAT_TEMPLATES)}.")
    return Path(chat_template).read_text(encoding="utf-8")


def _places_image(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    question = "What is shown?"
    image, words = {"type": "image"}, {"type": "text", "text": question}
    rendered = []
    try:
        for content in (f"{IMAGE_TOKEN}\n{question}", [image, words], [words, image]):
            messages: Any = [{"role": "user", "content": content}]
            with template_refusals():
                text: Any = tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            rendered.append(text)
    except (UserError, TypeError):  # e.g. text + list
        return False
    return len(set(rendered)) == 1 and rendered[0].count(IMAGE_TOKEN) == 1 and question in rendered[0]


def _with_marked_answers(tokenizer: PreTrainedTokenizerBase, template: str, placing: str) -> str:
    """Make a template open every answer as it opens generation, and mark the answers with `{% generation %}`.

    Qwen3's template writes an empty block of thoughts for the last answer only, DeepSeek-R1's opens it for generation
    only, and gpt-oss's leaves the choice of a channel to the model. A template that cannot be repaired is returned
    unchanged, and `check_round_trip` refuses it. So is one that marks the answers already.

    Args:
        tokenizer: the LLM's tokenizer.
        template: a template.
        placing: PARTS_TO_TEXT if the template needs it to place images, else "".
    """
    try:
        turn = assistant_turn(tokenizer, template)
        consistent = len(turn.openings) == 1 and _closed(turn.prompt) == turn.prompt
        if consistent and marks_answers(tokenizer, placing + template):
            return placing + template
        unmarked = GENERATION.sub(r"{#\1 \2#}", template)
        shown = _captured(unmarked) + ("" if consistent else _one_opening(turn))
        after = assistant_turn(tokenizer, shown + "{{- shown -}}")
        ends = [end for end in (end_text(tokenizer, after.last_end), end_text(tokenizer, after.earlier_end)) if end]
    except UserError:
        return placing + template
    if len(after.openings) > 1 or (after.last_end, after.earlier_end) != (turn.last_end, turn.earlier_end) or not ends:
        return placing + template
    return PARTS_TO_TEXT + shown + _marking(after.prompt, list(dict.fromkeys(ends)))


def _captured(template: str) -> str:
    """Assign the output of a template to `shown`. The plus signs preserve white space at the template's ends."""
    return "{%- set shown +%}" + template.removesuffix("\n") + "{%+ endset -%}\n"


def _one_opening(turn: AssistantTurn) -> str:
    """Replace every opening in `shown` by the longest of them."""
    opening = _closed(max(turn.prompt, turn.last, turn.earlier, key=len))
    shortest, *others = sorted({turn.last, turn.earlier, opening}, key=len)
    changes = [(other, shortest) for other in reversed(others)] + [(shortest, opening)] * bool(others)
    replaced = "".join(f".replace({_quoted(old)}, {_quoted(new)})" for old, new in changes)
    return (
        f"{{%- set generating = add_generation_prompt and shown.endswith({_quoted(turn.prompt)}) -%}}\n"
        f"{{%- set shown = (shown[:shown | length - {len(turn.prompt)}] if generating else shown){replaced} -%}}\n"
        f"{{%- set shown = shown + {_quoted(opening)} if generating else shown -%}}\n"
    )


def _marking(opening: str, ends: Sequence[str]) -> str:
    """Print `shown`, with each answer between markers. Only text that follows an earlier message opens an answer."""
    values = {"OPENING": _quoted(opening), "ENDS": json.dumps(list(ends), ensure_ascii=False)}
    return re.sub("|".join(values), lambda name: values[name[0]], MARK_ANSWERS)


def _closed(opening: str) -> str:
    """Close the block of thoughts in which an opening may end."""
    return re.sub(r"<think>\s*$", "<think>\n\n</think>\n\n", opening)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
