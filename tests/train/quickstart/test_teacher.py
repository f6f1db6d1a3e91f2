"""The quickstart's teacher: its few words, and the order of its batches."""

import json
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP

from sparse_vlm.data.easy_vqa import CLASSES, image_path, split_folder
from train.quickstart.data import conversation_record
from train.quickstart.teacher import BATCH, CaptionedImages, TeacherArguments, Vocabulary, clip_config

CAPTIONS = [shown.caption for shown in CLASSES]


def test_texts_have_the_same_embeddings_in_the_whole_vocabulary() -> None:
    torch.manual_seed(0)
    config = clip_config(TeacherArguments("", "", width=64, image_layers=1, text_layers=1))
    vocabulary = Vocabulary(config["text_cfg"]["context_length"])
    few = CLIP(**config | {"text_cfg": config["text_cfg"] | {"vocab_size": len(vocabulary.words)}}).eval()
    whole = CLIP(**config).eval()
    weights = few.state_dict()
    embedding = vocabulary.expand(weights["token_embedding.weight"], config["text_cfg"]["vocab_size"])
    whole.load_state_dict(weights | {"token_embedding.weight": embedding})
    tokens = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])(CAPTIONS)
    with torch.inference_mode():
        expected = whole.encode_text(tokens)
        actual = few.encode_text(torch.stack([vocabulary.texts[caption] for caption in CAPTIONS]))
    torch.testing.assert_close(actual, expected)
    assert len(expected.unique(dim=0)) == BATCH


def test_every_batch_has_one_image_of_each_class(tmp_path: Path) -> None:
    records = [conversation_record(caption, [("", caption)], f"{place}.png") for place, caption in enumerate(CAPTIONS)]
    (tmp_path / "captions.json").write_text(json.dumps(records))
    for place in range(BATCH):
        (tmp_path / f"{place}.png").symlink_to(image_path(split_folder("test") / "images", place))
    texts = Vocabulary(8).texts
    images = CaptionedImages(tmp_path / "captions.json", tmp_path, texts, batches=3, seed=0)
    assert len(images) == 3 * BATCH
    for start in range(0, len(images), BATCH):
        batch = torch.stack([images[index]["text"] for index in range(start, start + BATCH)])
        torch.testing.assert_close(batch, torch.stack(list(texts.values())))
    assert images[0]["pixel_values"].shape == (3, 64, 64)
