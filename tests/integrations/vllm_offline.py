"""A program that asks vLLM's offline API: python vllm_offline.py ASKED.json ANSWERS.json

ASKED: {"directory": …, "dtype": …, "batches": [{"messages": conversations, "options": mm_processor_kwargs}]}.
ANSWERS: the token ids of each conversation's answer, in lists per batch.
"""

import json
import sys
from pathlib import Path


def main(asked_file: str, answers_file: str) -> None:
    sys.modules["sparse_vlm"] = None  # type: ignore[assignment]  # the directory's own code must do
    from vllm import LLM, SamplingParams

    asked = json.loads(Path(asked_file).read_text())
    llm = LLM(
        asked["directory"],
        model_impl="transformers",
        trust_remote_code=True,
        enforce_eager=True,
        dtype=asked["dtype"],
        max_model_len=256,
        max_num_seqs=8,
        limit_mm_per_prompt={"image": 3},
    )
    sampling = SamplingParams(temperature=0, max_tokens=8)
    answers = []
    for batch in asked["batches"]:
        options = batch["options"] or None
        replies = llm.chat(batch["messages"], sampling, use_tqdm=False, mm_processor_kwargs=options)
        answers.append([list(reply.outputs[0].token_ids) for reply in replies])
    Path(answers_file).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
