"""Chat templates: LLaVA's conversation formats, and what `build` makes of a language model's own.

The texts of LLaVA's formats are those of its `conversation.py` (tests/vlm/language/test_templates.py compares), behind
the tokenizer's bos. They are for language models that have no template (Vicuna) and for LLaVA's data.
"""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.control_tokens import IMAGE_TOKEN
from sparse_vlm.vlm.language.turns import AssistantTurn, assistant_turn, template_refusals

# "USER: Q ASSISTANT: A</s>USER: …" behind a system prompt; with the tokenizer's own eos
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
    "{%- else -%}{{- 'ASSISTANT: ' + message['content'] + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)
# For alignment only: the picture, then its caption and a newline. The question is not written, and eos never is.
LLAVA_PLAIN = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '<image>' * message['content'].count('<image>') -}}"
    "{%- else -%}{{- message['content'] + '\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
)
# What --chat_template takes by name; a model that answers needs an end of its turns, so plain is not among them.
CHAT_TEMPLATES = {"llava_v1": LLAVA_V1}

# Put before a template that prints a message's content as text: makes text of lists of parts first. The images of a
# user's turn stand before its words, as training puts them; several stay where they are if words stand between them.
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
# What templates of models that can think ask, to close the empty block themselves where the answer begins.
THINKING = ("enable_thinking", "thinking")
TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


def prepare_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | Path | None = None) -> str:
    """The template of a model directory: renders a turn with an image in any form alike, and every answer as it is
    generated.

    - `[{"type": "image"}, {"type": "text", "text": Q}]`, the same in another order, and "<image>\\nQ" are one text.
    - An answer has the same opening at generation, at a conversation's end and in its middle. A model that can think
      does not: a closed, empty block stands there.
    - A date is that of the day on which the template is prepared.

    A template that does all this is left as it is.

    Args:
        tokenizer: the LLM's; its own template is the default.
        chat_template: a Jinja file, Jinja text, or a name of CHAT_TEMPLATES.

    Raises:
        UserError: there is no template, no such file, or it cannot place an image.
    """
    template = _own_template(tokenizer) if chat_template is None else _read_template(chat_template)
    template = TODAY.sub(lambda call: json.dumps(datetime.now().strftime(call[2])), template)
    template = "".join(f"{{%- set {name} = false +%}}" for name in THINKING if name in template) + template
    for candidate in (template, PARTS_TO_TEXT + template):
        if _places_image(tokenizer, candidate):
            return _with_one_opening(tokenizer, candidate)
    raise UserError(
        "The chat template cannot place an image: it must print the content of a user's message, e.g. "
        "\"{% for message in messages %}{{ message['content'] }}{% endfor %}\"."
    )


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    own = tokenizer.chat_template
    if isinstance(own, dict) and "default" not in own:
        raise UserError(
            f"The LLM's tokenizer has the chat templates {', '.join(own)} and none named default: write the one to use "
            "into a Jinja file and give it with --chat_template."
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


def _with_one_opening(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """A template that opens every answer as it opens the one to be generated, with an empty block where it thinks.

    Qwen3's writes the block for the last answer alone, DeepSeek-R1's opens it for generation alone, gpt-oss's leaves
    the choice of a channel to the model. What cannot be mended stays as it is: `check_round_trip` refuses it.
    """
    try:
        turn = assistant_turn(tokenizer, template)
        if len(turn.openings) == 1 and _closed(turn.prompt) == turn.prompt:
            return template
        mended = _mended(template, turn)
        after = assistant_turn(tokenizer, mended)
    except UserError:
        return template
    ends_stay = (after.last_end, after.earlier_end) == (turn.last_end, turn.earlier_end)
    return mended if len(after.openings) == 1 and ends_stay else template


def _mended(template: str, turn: AssistantTurn) -> str:
    """The template's text with each of its openings replaced by the longest of them."""
    opening = _closed(max(turn.prompt, turn.last, turn.earlier, key=len))
    shortest, *others = sorted({turn.last, turn.earlier, opening}, key=len)
    changes = [(other, shortest) for other in reversed(others)] + [(shortest, opening)] * bool(others)
    replaced = "".join(f".replace({_quoted(old)}, {_quoted(new)})" for old, new in changes)
    prompt = _quoted(turn.prompt)
    return (  # the plus signs keep the white space at the template's ends
        "{%- set shown +%}" + template.removesuffix("\n") + "{%+ endset -%}\n"
        f"{{%- set generating = add_generation_prompt and shown.endswith({prompt}) -%}}\n"
        f"{{%- set shown = (shown[:shown | length - {len(turn.prompt)}] if generating else shown){replaced} -%}}\n"
        f"{{{{- shown -}}}}{{%- if generating -%}}{{{{- {_quoted(opening)} -}}}}{{%- endif -%}}\n"
    )


def _closed(opening: str) -> str:
    """An opening that ends in an open block of thoughts, with the block closed."""
    return re.sub(r"<think>\s*$", "<think>\n\n</think>\n\n", opening)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
