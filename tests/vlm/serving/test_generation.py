"""Generation of one answer: stop strings and abandoned requests."""

from threading import Event

import torch

from sparse_vlm.vlm.chat import encode_prompt
from sparse_vlm.vlm.serving.generation import Answer, Piece, Settings, generate
from tests.vlm.conftest import Loaded


def test_a_possible_stop_string_is_held_back(vlm: Loaded) -> None:
    model, processor = vlm
    inputs = encode_prompt(processor, None, "What is shown?")
    whole: list[Piece] = []
    answer = generate(model, processor.tokenizer, inputs, Settings(12), whole.append, Event())
    text = "".join(piece.text for piece in whole)
    assert text == answer.text
    for size in range(2, 10):
        for stop, ends in ((text[4 : 4 + size], True), (text[4 : 4 + size - 1] + "§", False), (text[-2:] + "§", False)):
            pieces: list[Piece] = []
            found = generate(model, processor.tokenizer, inputs, Settings(12, stops=[stop]), pieces.append, Event())
            said = "".join(piece.text for piece in pieces)
            assert said == (text[: text.index(stop)] if ends else text)
            assert found.finish_reason == ("stop" if ends else "length")
            assert not ends or len(found.ids) < 12


def test_characters_of_several_tokens_come_whole(vlm: Loaded) -> None:
    tokenizer, text = vlm[1].tokenizer, "a 🙂 é 汉字 \u2028"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert any("\ufffd" in tokenizer.decode(ids[:count]) for count in range(1, len(ids)))
    pieces: list[Piece] = []
    answer = Answer(tokenizer, Settings(99), pieces.append)
    answer.put(torch.tensor([[1]]))  # the prompt
    for token in ids:
        answer.put(torch.tensor([token]))
    answer.end()
    assert "".join(piece.text for piece in pieces) == text
    assert not any("\ufffd" in piece.text for piece in pieces)


def test_an_abandoned_answer_ends_within_a_token(vlm: Loaded) -> None:
    abandoned = Event()
    inputs = encode_prompt(vlm[1], None, "What is shown?")
    answer = generate(vlm[0], vlm[1].tokenizer, inputs, Settings(500), lambda piece: abandoned.set(), abandoned)
    assert len(answer.ids) <= 2
