"""Batches give the same logits and loss as single unpadded rows, on a tiny random Llama."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from sparse_vlm.data.conversations.collate import PACKINGS, ConversationCollator, pack, segment_mask
from sparse_vlm.data.conversations.encoding import IGNORE, Row, encode, encode_independent
from sparse_vlm.data.conversations.samples import parse_sample
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.turns import ChatFormat
from sparse_vlm.vlm.views import View
from tests.data.conversations.records import record

VQA = record("<image>\nWhat shape is it?", "circle", "Is there a red one here?", "yes", "Color?", "dark blue")
TEXT = record("Name a colour.", "green", "And now another one, please.", "a light red", image=None)
LONG = record("<image>\nWhat is there?", ", ".join(f"circle {number}" for number in range(40)))


@pytest.fixture(scope="module")
def llama(chat: ChatFormat) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(chat.tokenizer), **sizes, **heads)).eval()


def example(row: Row, pixel_values: torch.Tensor | None = None) -> dict:
    images = [] if pixel_values is None else [pixel_values]
    return {"row": row, "tokens": 5, "images": images, "views": [View(0, 5) for _ in images]}


def alone(llama: LlamaForCausalLM, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and targets at the predicting positions of a single row, with plain causal attention."""
    assert set(row.segments) == {0}
    targets = torch.tensor(row.targets)
    logits = llama(torch.tensor([row.input_ids])).logits[0]
    return logits[targets != IGNORE], targets[targets != IGNORE]


@torch.no_grad()
def test_padded_batch_equals_single_rows(llama: LlamaForCausalLM, chat: ChatFormat) -> None:
    rows = [encode(parse_sample(r, 0), chat) for r in (VQA, TEXT)]
    batch = ConversationCollator(0)([example(row) for row in rows])
    out = llama(**batch)
    expected = [alone(llama, row) for row in rows]
    assert torch.equal(batch["shift_labels"], torch.cat([targets for _, targets in expected]))
    torch.testing.assert_close(out.logits, torch.cat([logits for logits, _ in expected]), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.loss, cross_entropy(out.logits, batch["labels"]))


@torch.no_grad()
@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_rows_equal_single_rows(llama: LlamaForCausalLM, chat: ChatFormat, packing: str) -> None:
    rows = {len(row.input_ids): row for row in (encode(parse_sample(r, 0), chat) for r in (TEXT, LONG, VQA))}
    batch = ConversationCollator(0, packing=packing)([example(row) for row in rows.values()])
    assert batch["input_ids"].shape == {"longest": (2, max(rows)), "one row": (1, sum(rows))}[packing]
    out = llama(**batch)
    expected = [alone(llama, rows[length]) for length in sorted(rows, reverse=True)]  # in the order of `pack`
    assert torch.equal(batch["shift_labels"], torch.cat([targets for _, targets in expected]))
    torch.testing.assert_close(out.logits, torch.cat([logits for logits, _ in expected]), atol=1e-4, rtol=0)
    unseparated = llama(**{name: value for name, value in batch.items() if name != "position_ids"}).logits
    assert not torch.allclose(unseparated, out.logits, atol=1e-2)


def test_pack_fills_rows_without_overflow() -> None:
    assert pack([3, 9, 4, 1, 5], 9) == [[1], [4, 2], [0, 3]]
    assert pack([2, 2], 4) == [[0, 1]]
    assert pack([7], 7) == [[0]]


def test_unknown_packing_and_packing_of_independent_turns_are_errors() -> None:
    with pytest.raises(UserError, match=r"Unknown packing 'longes'\. Did you mean 'longest'"):
        ConversationCollator(0, packing="longes")
    with pytest.raises(UserError, match="--packing and --independent_turns exclude each other"):
        ConversationCollator(0, packing="longest", independent_turns=True)


def test_packed_images_follow_their_placeholders(chat: ChatFormat) -> None:
    """Packing reorders rows. A batch without images gets the blank image as a separate conversation."""
    rows = [encode(parse_sample(r, 0), chat) for r in (TEXT, VQA, record("<image>\nQ", "A"), LONG)]
    images = list(torch.rand(3, 3, 8, 8))
    collate = ConversationCollator(0, packing="longest", blank_image=(chat.image_token_id, images[0].shape))
    examples = [example(row, image) for row, image in zip(rows, [None, *images], strict=True)]
    groups = pack([len(row.input_ids) for row in rows], len(rows[3].input_ids))
    batch = collate(examples)
    assert len(batch["input_ids"]) == len(groups) < len(rows)
    in_order = [examples[index]["images"] for group in groups for index in group]
    assert torch.equal(batch["pixel_values"], torch.stack([image for own in in_order for image in own]))
    assert not torch.equal(batch["pixel_values"], torch.stack(images)), "packing must change the order"
    text = collate(examples[:1])
    assert text["pixel_values"].eq(0).all()
    where = text["input_ids"] == chat.image_token_id
    assert int(where.sum()) == chat.tokens_per_image
    assert text["position_ids"][where].tolist() == list(range(chat.tokens_per_image))
    assert not text["logits_to_keep"][where].any()


@torch.no_grad()
def test_independent_turns_equal_single_turns(llama: LlamaForCausalLM, chat: ChatFormat) -> None:
    rows = [encode_independent(parse_sample(r, 0), chat) for r in (VQA, TEXT)]
    batch = ConversationCollator(0, independent_turns=True)([example(row) for row in rows])
    out = llama(**batch)
    singles = []
    for r in (VQA, TEXT):
        texts = [turn["value"].removeprefix("<image>\n") for turn in r["conversations"]]
        for question, answer in zip(texts[::2], texts[1::2], strict=True):
            image = r.get("image")
            one = record(("<image>\n" if image else "") + question, answer, image=image)
            singles.append(alone(llama, encode(parse_sample(one, 0), chat)))
    torch.testing.assert_close(out.logits, torch.cat([logits for logits, _ in singles]), atol=1e-4, rtol=0)
    expected = cross_entropy(torch.cat([logits for logits, _ in singles]), torch.cat([t for _, t in singles]))
    torch.testing.assert_close(out.loss, expected, atol=1e-4, rtol=0)
    dependent = llama(**ConversationCollator(0)([example(encode(parse_sample(VQA, 0), chat))])).logits
    assert not torch.allclose(dependent[-1], out.logits[len(dependent) - 1], atol=1e-2)  # earlier answers matter


def test_the_mask_of_a_small_row() -> None:
    mask = segment_mask(torch.tensor([[0, 0, 1, 1, 2, -1, -1]]))[0, 0]
    expected = ["1000000", "1100000", "1110000", "1111000", "1100100", "0000010", "0000001"]
    assert ["".join(str(int(x)) for x in row) for row in mask] == expected


@pytest.mark.parametrize("independent", [False, True])
def test_the_blank_image_is_for_batches_without_images(chat: ChatFormat, independent: bool) -> None:
    image = torch.rand(3, 8, 8)
    blank = (chat.image_token_id, image.shape)
    rows = [(encode_independent if independent else encode)(parse_sample(r, 0), chat) for r in (TEXT, VQA)]
    collate = ConversationCollator(0, independent_turns=independent, blank_image=blank)
    mixed = collate([example(rows[0]), example(rows[1], image)])
    assert torch.equal(mixed["pixel_values"], image[None])
    assert int((mixed["input_ids"] == chat.image_token_id).sum()) == chat.tokens_per_image
    assert "pixel_values" not in ConversationCollator(0)([example(rows[0])])
    text = collate([example(rows[0]), example(rows[0])])
    where = text["input_ids"] == chat.image_token_id
    assert text["pixel_values"].shape == (1, 3, 8, 8)
    assert int(where.sum()) == chat.tokens_per_image
    mask = text["attention_mask"]
    seen = mask.bool()[:, None, :].expand(-1, mask.shape[1], -1) if mask.ndim == 2 else mask[:, 0]
    from_outside = seen & where[:, None, :] & ~where[:, :, None]
    assert not from_outside.any()
    assert not text["logits_to_keep"][where].any()


def test_several_images_are_in_the_order_of_their_placeholders(chat: ChatFormat) -> None:
    several = record("<image> or <image>?", "the first", image=["a", "b"])
    rows = [encode(parse_sample(r, 0), chat) for r in (several, TEXT, VQA)]
    images = list(torch.rand(3, 3, 8, 8))
    first = {"row": rows[0], "tokens": 5, "images": images[:2], "views": [View(0, 5), View(1, 5)]}
    batch = ConversationCollator(0)([first, example(rows[1]), example(rows[2], images[2])])
    assert torch.equal(batch["pixel_values"], torch.stack(images))
    placeholders = (batch["input_ids"] == chat.image_token_id).sum(1)
    assert placeholders.tolist() == [2 * chat.tokens_per_image, 0, chat.tokens_per_image]
