"""SparseFormer as a module: its output, inputs of any size, copies, compilation, directories."""

import copy
import io
import math
import pickle
from pathlib import Path

import pytest
import torch

from sparse_vlm.encoder import EncoderOutput, SparseFormer, SparseFormerConfig, create_encoder
from sparse_vlm.encoder.batches import encode_canvases, select_hidden_states
from sparse_vlm.errors import UserError
from tests.encoder.parity.official import NAMES, load_official, recorded


def assert_same(first: EncoderOutput, second: EncoderOutput, tolerance: float = 0) -> None:
    for a, b in zip(first[:3], second[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@torch.no_grad()
def test_output(tiny_encoder: SparseFormer) -> None:
    output = tiny_encoder(torch.randn(2, 3, 64, 64))
    assert output.tokens.shape == (2, 7, 128)
    assert output.pooled.shape == (2, 12)
    assert output.rois.shape == (2, 2, 6, 4)  # steps first
    assert len(output.hidden_states) == 3  # the input of the first block, and the output of both blocks
    assert torch.equal(output.hidden_states[-1], output.tokens)
    cls = tiny_encoder.cortex.cls_embedding
    assert cls is not None
    assert torch.equal(output.hidden_states[0][:, 0], cls.expand(2, -1))
    assert tiny_encoder.num_prefix_tokens == 1


@torch.no_grad()
def test_hidden_states_skip_the_blocks_after_them(tiny_encoder: SparseFormer) -> None:
    images = torch.randn(2, 3, 64, 50)
    expected = tiny_encoder(images).hidden_states
    for layers in ([-1], [0, 2], [-2, -3, 1], []):
        got = tiny_encoder.hidden_states(images, layers)
        assert all(torch.equal(state, expected[layer]) for state, layer in zip(got, layers, strict=True))
    tiny_encoder.cortex.trunk.blocks[-1].register_forward_pre_hook(lambda *_: pytest.fail("this block is not needed"))
    assert torch.equal(*tiny_encoder.hidden_states(images, [-2]), expected[-2])
    with pytest.raises(UserError, match=r"Hidden state -4 does not exist: this encoder has 0 to 2, or -1 to -3\."):
        tiny_encoder.hidden_states(images, [-1, -4])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 200), (500, 20), (64, 64), (96, 50)])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_any_size_gives_the_same_number_of_finite_tokens(name: str, size: tuple[int, int]) -> None:
    encoder = load_official(name)
    output = encoder(torch.randn(1, 3, *size))
    assert output.tokens.shape[1] == encoder.config.focus.tokens + encoder.num_prefix_tokens
    assert all(value.isfinite().all() for value in output[:3])


@torch.no_grad()
def test_images_of_a_batch_do_not_mix(tiny_encoder: SparseFormer) -> None:
    images = torch.randn(3, 3, 48, 64)
    together, alone = tiny_encoder(images).pooled, tiny_encoder(images[1:2]).pooled
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(0, 3, 8, 8),
        torch.zeros(1, 3, 0, 8),
        torch.zeros(1, 1, 8, 8),
        torch.zeros(1, 4, 8, 8),
        torch.zeros(3, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    ],
    ids=lambda images: f"{str(images.dtype)[6:]}{list(images.shape)}",
)
def test_other_tensors_are_refused_with_their_shape(tiny_encoder: SparseFormer, images: torch.Tensor) -> None:
    with pytest.raises(UserError, match="non-empty batch of RGB images") as caught:
        tiny_encoder(images)
    assert str(caught.value).endswith(f"got {str(images.dtype)[6:]}{list(images.shape)}.")


@torch.no_grad()
def test_copies_compute_the_same(tiny_encoder: SparseFormer) -> None:
    images = torch.randn(2, 3, 64, 64)
    expected = tiny_encoder(images)
    assert_same(copy.deepcopy(tiny_encoder)(images), expected)
    assert_same(pickle.loads(pickle.dumps(tiny_encoder))(images), expected)
    buffer = io.BytesIO()
    torch.save(tiny_encoder.state_dict(), buffer)
    other = SparseFormer(tiny_encoder.config).eval()
    other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert_same(other(images), expected)


@torch.no_grad()
def test_forward_changes_nothing(tiny_encoder: SparseFormer) -> None:
    before = copy.deepcopy(tiny_encoder.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert_same(tiny_encoder(images), tiny_encoder(images))
    assert all(torch.equal(value, before[key]) for key, value in tiny_encoder.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_directory_gives_the_same_model(name: str, tmp_path: Path) -> None:
    encoder, images = load_official(name), recorded(name, "a")["input"]
    encoder.save_pretrained(tmp_path / "encoder")
    again = SparseFormer.from_pretrained(tmp_path / "encoder")
    assert again.config == encoder.config
    assert not again.training
    with torch.no_grad():
        assert_same(again(images), encoder(images))


def test_opening_draws_no_random_weights(tiny_encoder: SparseFormer, tmp_path: Path) -> None:
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    before = torch.get_rng_state()
    opened = SparseFormer.from_pretrained(tmp_path / "encoder")
    assert torch.equal(torch.get_rng_state(), before)
    for name, weight in opened.state_dict().items():
        assert torch.equal(weight, tiny_encoder.state_dict()[name])


def test_opening_computes_what_no_file_holds(tiny_encoder: SparseFormer) -> None:
    class WithTable(SparseFormer):
        def __init__(self, config: SparseFormerConfig) -> None:
            super().__init__(config)
            self.register_buffer("table", torch.arange(3.0), persistent=False)

    opened = WithTable.from_weights(tiny_encoder.config, tiny_encoder.state_dict(), "a test")
    assert opened.get_buffer("table").tolist() == [0, 1, 2]


def test_a_low_precision_model_is_saved_and_opened(tiny_encoder: SparseFormer, tmp_path: Path) -> None:
    tiny_encoder.bfloat16().save_pretrained(tmp_path / "encoder")
    again = SparseFormer.from_pretrained(tmp_path / "encoder")
    assert torch.equal(again.stem.conv.weight, tiny_encoder.stem.conv.weight.float())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v1_tiny", "btsp_clip_tiny"])
@torch.no_grad()
def test_one_graph_for_any_batch_and_size_without_breaks(name: str) -> None:
    encoder, images = load_official(name), recorded(name, "b")["input"]  # not square: equal sides are one variable
    compiled = torch.compile(encoder, fullgraph=True, dynamic=True, backend="eager")
    assert_same(compiled(images), encoder(images), tolerance=1e-6)
    others = torch.randn(3, 3, 50, 75)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_same(compiled(others), encoder(others), tolerance=1e-5)


@pytest.mark.slow
def test_exported_saved_and_opened_with_any_size(tiny_encoder: SparseFormer, tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    height, width = (torch.export.Dim(side, min=8, max=512) for side in ("height", "width"))
    shapes = {"images": {0: batch, 2: height, 3: width}}
    program = torch.export.export(tiny_encoder, (torch.randn(2, 3, 64, 64),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "encoder.pt2")
    exported = torch.export.load(tmp_path / "encoder.pt2").module()
    with torch.no_grad():
        for size in ((1, 3, 64, 64), (3, 3, 96, 50)):
            images = torch.randn(*size)
            assert_same(exported(images), tiny_encoder(images), tolerance=1e-5)
    no_number = {name: torch.full_like(value, math.nan) for name, value in tiny_encoder.state_dict().items()}
    exported.load_state_dict(no_number)
    assert exported(images).rois.isnan().all()  # without reading invalid memory


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"Unknown encoder variant 'sparseformer-clip'\. Did you mean .*clip-[bl]"):
        create_encoder("sparseformer-clip")


def test_preprocessing_belongs_to_the_weights(tiny_encoder: SparseFormer) -> None:
    assert tiny_encoder.transform.preprocessing == tiny_encoder.config.preprocessing


def test_a_batch_of_canvases_equals_encoding_each_image_alone(tiny_config: SparseFormerConfig) -> None:
    torch.manual_seed(0)
    encoder = SparseFormer(tiny_config).eval()
    images = [torch.randn(3, *size) for size in ((40, 64), (64, 64), (64, 20), (40, 64), (1, 64))]
    with torch.no_grad():
        out = encode_canvases(encoder, torch.stack([_canvas(image) for image in images]))
        for index, image in enumerate(images):
            alone = encoder(image[None])
            torch.testing.assert_close(out.tokens[index], alone.tokens[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(out.pooled[index], alone.pooled[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(out.rois[:, index], alone.rois[:, 0], atol=1e-5, rtol=1e-5)
            for state, expected in zip(out.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(state[index], expected[0], atol=1e-5, rtol=1e-5)
    assert out.rois.dtype == torch.float32
    with torch.no_grad():
        chosen = select_hidden_states(encoder, torch.stack([_canvas(image) for image in images]), [-2, 0], "native")
    assert torch.equal(chosen[0], out.hidden_states[-2])
    assert torch.equal(chosen[1], out.hidden_states[0])


def _canvas(image: torch.Tensor) -> torch.Tensor:
    canvas = torch.full((3, 64, 64), torch.nan)
    canvas[:, : image.shape[1], : image.shape[2]] = image
    return canvas
