"""Numbers of visual tokens and regions: counts per image, boxes, their place in the prompt, and bad requests."""

from typing import Any

import pytest
import torch
from PIL import Image

from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.chat import GREEDY, answer, encode_messages, encode_prompt
from sparse_vlm.vlm.views import View, flat_boxes, pack_by_image, pack_views, tokens_per_image, unpack_views
from tests.vlm.conftest import Loaded, logits_of

BOX = (0.25, 0.5, 0.75, 1.0)
WHOLE = (0.0, 0.0, 1.0, 1.0)


def tokens_of(processor: Any, inputs: Any) -> list[int]:
    return (inputs["input_ids"] == processor.image_token_id).sum(-1).tolist()


def test_views_survive_a_cast_to_bfloat16(vlm: Loaded, images: list[Image.Image]) -> None:
    _, processor = vlm
    inputs = encode_prompt(processor, images[1], "What?", visual_tokens=300, regions=[BOX])
    (whole, region) = unpack_views(inputs.to(torch.bfloat16)["views"])
    assert whole == View(0, 300)
    assert (region.image, region.tokens, region.box) == (0, processor.region_tokens, BOX)


def test_each_image_gets_the_requested_number_of_tokens(vlm: Loaded, images: list[Image.Image]) -> None:
    _, processor = vlm
    assert tokens_of(processor, encode_prompt(processor, images, "What?", visual_tokens=3)) == [9]
    texts = ["<image>a", "<image>b<image>"]
    inputs = processor(text=texts, images=images, visual_tokens=[2, 5, 7], padding=True, return_tensors="pt")
    assert tokens_of(processor, inputs) == [2, 12]
    assert [view.tokens for view in unpack_views(inputs["views"])] == [2, 5, 7]


def test_without_a_request_there_are_no_views(vlm: Loaded, images: list[Image.Image]) -> None:
    assert "views" not in encode_prompt(vlm[1], images[0], "What?")


def test_the_default_number_gives_the_default_output(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    asked = encode_prompt(processor, images[0], "What?", visual_tokens=processor.num_image_tokens)
    torch.testing.assert_close(logits_of(model, asked), logits_of(model, encode_prompt(processor, images[0], "What?")))


def test_the_model_reads_the_layout_of_each_count_and_box(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    inputs = processor(
        text="<image><region> and <image>", images=images[1:], visual_tokens=[5, 3], regions=[BOX], return_tensors="pt"
    )
    found = model.model.encode_images(inputs["pixel_values"], inputs["views"])
    encoder, (first, second) = model.model.vision_tower.encoder, inputs["pixel_values"].split(1)
    box = processor.image_processor.model_box(BOX, images[1].size)
    layer, drop = model.config.vision_feature_layer, encoder.num_prefix_tokens
    expected = [
        encoder.hidden_states(pixels, [layer], rois=rois)[0][0, drop:]
        for pixels, rois in (
            (first, lay_out_rois(5)),
            (first, lay_out_rois(processor.region_tokens, box)),
            (second, lay_out_rois(3)),
        )
    ]
    torch.testing.assert_close(found, expected)


def test_the_stem_runs_once_per_image(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    inputs = encode_prompt(processor, images[0], "What?", visual_tokens=4, regions=[BOX, WHOLE])
    seen: list[int] = []
    hook = model.model.vision_tower.encoder.stem.register_forward_hook(lambda stem, given, out: seen.append(len(out)))
    logits_of(model, inputs)
    hook.remove()
    assert seen == [1]


def test_a_batch_with_different_counts_gives_the_single_answers(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    texts = ["<image>What?", "<image><region>What?", "<image>What?"]
    counts = [2, 4, 9]
    batch = processor(text=texts, images=images, visual_tokens=counts, regions=[BOX], padding=True, return_tensors="pt")
    together = model.generate(**batch, max_new_tokens=6, min_new_tokens=6, **GREEDY)
    for row, (text, image, count) in enumerate(zip(texts, images, counts, strict=True)):
        boxes = [BOX] if "region" in text else None
        alone = processor(text=text, images=[image], visual_tokens=count, regions=boxes, return_tensors="pt")
        ids = model.generate(**alone, max_new_tokens=6, min_new_tokens=6, **GREEDY)
        assert ids[0, -6:].tolist() == together[row, -6:].tolist()


def test_beam_search_keeps_the_images_of_each_row(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    texts = ["<image><region>What?", "<image><image>What?"]
    search = GREEDY | {"num_beams": 3}
    batch = processor(
        text=texts, images=images, visual_tokens=[2, 4, 3], regions=[BOX], padding=True, return_tensors="pt"
    )
    together = model.generate(**batch, max_new_tokens=5, min_new_tokens=5, **search)
    alone = processor(text=texts[1], images=images[1:], visual_tokens=[4, 3], return_tensors="pt")
    ids = model.generate(**alone, max_new_tokens=5, min_new_tokens=5, **search)
    assert together[1, -5:].tolist() == ids[0, -5:].tolist()


def test_an_answerer_with_a_count_gives_the_single_answers(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    questions = [(0, "What is it?"), (1, "Red?"), (0, "Which one is it?")]
    answerer = Answerer(model, processor, 6, visual_tokens=5)
    found = {index: text for batch in answerer.answer(images[:2], questions) for index, text in batch}
    for index, (place, text) in enumerate(questions):
        assert found[index] == answer(model, processor, images[place], text, 6, visual_tokens=5)


def test_parts_of_type_region_are_placed_and_carry_their_boxes(vlm: Loaded, images: list[Image.Image]) -> None:
    _, processor = vlm
    parts = [
        {"type": "image", "image": images[1]},
        {"type": "text", "text": "What is in "},
        {"type": "region", "box": list(BOX)},
        {"type": "text", "text": "?"},
    ]
    turns = [{"role": "user", "content": parts}]
    inputs = processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
    assert [view.box for view in unpack_views(inputs["views"])] == [WHOLE, BOX]
    assert tokens_of(processor, inputs) == [processor.num_image_tokens + processor.region_tokens]
    by_hand = encode_messages(processor, turns, [images[1]])
    start = len(inputs["input_ids"][0])
    assert by_hand["input_ids"][0, :start].tolist() == inputs["input_ids"][0].tolist()


def test_a_region_that_people_type_is_text(vlm: Loaded, images: list[Image.Image]) -> None:
    _, processor = vlm
    inputs = encode_prompt(processor, images[0], "What does <region> mean?")
    assert tokens_of(processor, inputs) == [processor.num_image_tokens]
    assert "<region>" in processor.decode(inputs["input_ids"][0])


def test_boxes_are_in_the_coordinates_of_the_whole_image(vlm: Loaded) -> None:
    _, processor = vlm
    convert = processor.image_processor.model_box
    size, crop = processor.image_processor.size["shortest_edge"], processor.image_processor.crop_size["height"]
    assert size == crop, "the numbers below are for an encoder without a margin"
    assert convert((0.25, 0.0, 0.75, 1.0), (200, 100)) == WHOLE
    assert convert((0.0, 0.0, 0.5, 0.5), (200, 100)) == (0.0, 0.0, 0.5, 0.5)
    with pytest.raises(UserError, match="outside the central square"):
        convert((0.0, 0.0, 0.2, 1.0), (200, 100))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"visual_tokens": 0}, "at least 1, got 0"),
        ({"visual_tokens": -3}, "at least 1, got -3"),
        ({"visual_tokens": 2.5}, "whole number"),
        ({"visual_tokens": [4, 4]}, "1 images but 2 numbers"),
        ({"regions": [BOX]}, "0 <region> but there are 1 boxes"),
        ({"text": "<image><region>"}, "1 <region> but there are 0 boxes"),
        ({"text": "<region><image>", "regions": [BOX]}, "part of the image before it"),
        ({"text": "<region>", "regions": [BOX], "images": None}, "part of the image before it"),
        ({"text": "<image><region>", "regions": [(0.5, 0.0, 0.5, 1.0)]}, "x1 < x2"),
        ({"text": "<image><region>", "regions": [(0.0, 0.0, 1.0, 1.5)]}, "inside the image"),
        ({"text": "<image><region>", "regions": [(0.0, 0.0, float("nan"), 1.0)]}, "four numbers"),
        ({"text": "<image><region>", "regions": [(0.0, 0.0, 1.0)]}, "four numbers"),
        ({"text": "<image><region>", "regions": ["left"]}, "A region is a box"),
        ({"image_regions": [(0.0, 0.0, 1.0)]}, "four numbers"),
        ({"image_regions": ["left"]}, "A region is a box"),
        ({"num_image_tokens": 3}, "num_image_tokens belongs to the model"),
        ({"text": "<image><region>", "regions": [BOX], "image_regions": [BOX]}, "texts without <region> and videos"),
    ],
)
def test_bad_requests_are_refused(
    vlm: Loaded, images: list[Image.Image], request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        vlm[1](**{"text": "<image>What?", "images": [images[0]], "return_tensors": "pt"} | request_)


def test_more_tokens_than_positions_are_refused(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    with pytest.raises(UserError, match="positions of the language model"):
        logits_of(model, encode_prompt(processor, images[0], "What?", visual_tokens=10**5))
    with pytest.raises(UserError, match=r"more than the \d+ that the model takes"):
        answer(model, processor, images[0], "What?", 4, visual_tokens=10**4)


def test_a_part_without_a_box_is_refused(vlm: Loaded, images: list[Image.Image]) -> None:
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "region"}]}]
    with pytest.raises(UserError, match="needs its box"):
        encode_messages(vlm[1], turns, images[:1])


def test_numbers_and_boxes_as_users_write_them() -> None:
    assert tokens_per_image(None, 2, 16) == [16, 16]
    assert tokens_per_image((1, 2), 2, 16) == [1, 2]
    assert flat_boxes([[BOX], [], [BOX, WHOLE]]) == [BOX, BOX, WHOLE]
    assert flat_boxes([list(BOX)]) == [list(BOX)]
    assert flat_boxes(None) == []
    assert pack_views([]).shape == (0, 6)
    assert pack_by_image([]).shape == (0, 0, 5)


def test_views_of_several_batches_can_be_joined_by_image() -> None:
    """As servers do: rows belong to images, and images with fewer views have zeros after them."""
    first, second = [View(0, 5), View(0, 9, BOX), View(1, 4)], [View(0, 7)]
    packed = [pack_by_image(views) for views in (first, second)]
    assert [views.shape for views in packed] == [(2, 2, 5), (1, 1, 5)]
    joined = torch.zeros(3, 2, 5, dtype=torch.long)
    joined[:2], joined[2:, :1] = packed
    assert unpack_views(joined) == [*first, View(2, 7)]


def test_the_features_of_an_image_are_those_of_all_its_views(vlm: Loaded, images: list[Image.Image]) -> None:
    """Servers give each image's features to its request."""
    model, processor = vlm
    texts = ["<image><region>What?", "<image>What?"]
    together = processor(
        text=texts, images=images[1:], visual_tokens=[2, 4], regions=[BOX], padding=True, return_tensors="pt"
    )
    found = model.model.get_image_features(together["pixel_values"], views=together["views"]).pooler_output
    assert [len(features) for features in found] == [2 + processor.region_tokens, 4]
    alone = processor(text=texts[1], images=images[2], visual_tokens=4, return_tensors="pt")
    (expected,) = model.model.get_image_features(alone["pixel_values"], views=alone["views"]).pooler_output
    torch.testing.assert_close(found[1], expected)


def test_regions_of_an_image_without_placeholders(vlm: Loaded, images: list[Image.Image]) -> None:
    processor, boxes = vlm[1], [BOX, WHOLE]
    asked = processor(text="<image>\nWhat?", images=images[1], image_regions=boxes, return_tensors="pt")
    placed = processor(text="<image><region><region>\nWhat?", images=images[1], regions=boxes, return_tensors="pt")
    assert asked["input_ids"].tolist() == placed["input_ids"].tolist()
    assert asked["views"].tolist() == placed["views"].tolist()
    typed = processor(text="<image>\nWhat?", images=images[1], image_regions=["0.25,0.5,0.75,1", "0,0,1,1"])
    assert typed["views"].tolist() == placed["views"].tolist()
    both = processor(text="<image>a<image>", images=images[1:], image_regions=[WHOLE], visual_tokens=3)
    assert [(view.image, view.tokens) for view in unpack_views(both["views"])] == [(0, 3), (0, 9), (1, 3), (1, 9)]
