"""LLaVA-1.5's instructions, which stand on their own line after a question."""

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
OPTION_LETTER_CN = "请直接回答选项字母。"  # MMBench-CN
