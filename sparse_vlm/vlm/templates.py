"""LLaVA's conversation formats as chat templates, for language models that have none (Vicuna) and for LLaVA's data.

The texts are those of LLaVA's `conversation.py` (tests/vlm/test_templates.py compares), behind the tokenizer's bos.
"""

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
