"""SparseFormers as timm models: the same outputs, and everything that timm's training and evaluation need."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.optim._param_groups import param_groups_layer_decay
from timm.utils import ModelEmaV3

from sparse_vlm.encoder import CortexConfig, Preprocessing, SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.variants import VARIANTS
from sparse_vlm.errors import UserError
from sparse_vlm.integrations.timm import NAMES, TimmSparseFormer, create_from_directory, timm_name

IMAGES = torch.randn(2, 3, 48, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def directory(tiny_encoder: SparseFormer, tmp_path: Path) -> Path:
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.mark.slow
def test_every_variant_is_registered() -> None:
    assert sorted(NAMES.values()) == sorted(VARIANTS)
    assert timm.list_models("sparseformer_*large") == ["sparseformer_augreg_large", "sparseformer_clip_large"]
    for name, variant in NAMES.items():
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=11)
        config = VARIANTS[variant]
        assert (model.num_classes, model.num_features) == (11, config.cortex.width)
        data = resolve_model_data_config(model)
        assert data["input_size"] == (3, 224, 224)
        assert (data["mean"], data["std"]) == (config.preprocessing.mean, config.preprocessing.std)
        assert data["crop_pct"] == 224 / 256
        assert timm_name(replace(config, licence="mine")) == name
    with torch.device("meta"):
        assert timm.create_model("sparseformer_clip_large").num_classes == 768


@pytest.mark.parametrize("how", ["directory", "checkpoint_path", "overlay"])
def test_outputs_equal_those_of_the_encoder(how: str, directory: Path, tiny_encoder: SparseFormer) -> None:
    file, name = str(directory / "model.safetensors"), timm_name(tiny_encoder.config)
    if how == "directory":
        model = create_from_directory(directory)
    elif how == "checkpoint_path":
        model = timm.create_model(name, checkpoint_path=file)
    else:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": file})
    output = tiny_encoder(IMAGES)
    model.eval()
    assert torch.equal(model(IMAGES), output.pooled)
    features = model.forward_features(IMAGES)
    assert torch.equal(features, tiny_encoder.cortex.trunk.norm(output.tokens))
    assert torch.equal(model.forward_head(features), output.pooled)
    assert torch.equal(model.forward_head(features, pre_logits=True), features[:, 0])


@torch.no_grad()
def test_forward_intermediates(directory: Path, tiny_encoder: SparseFormer) -> None:
    model = create_from_directory(directory).eval()
    output = tiny_encoder(IMAGES)
    final, (first, second) = model.forward_intermediates(IMAGES, output_fmt="NLC")
    assert torch.equal(final, model.forward_features(IMAGES))
    assert torch.equal(first, output.hidden_states[1][:, 1:])
    assert torch.equal(second, output.tokens[:, 1:])
    ((latent, prefix),) = model.forward_intermediates(IMAGES, 1, True, norm=True, intermediates_only=True)
    assert torch.equal(torch.cat([prefix, latent], dim=1), final)
    model.cortex.trunk.blocks[-1].register_forward_pre_hook(lambda *_: pytest.fail("it is not needed"))
    (early,) = model.forward_intermediates(IMAGES, [0], stop_early=True, intermediates_only=True)
    assert torch.equal(early, first)
    with pytest.raises(UserError, match="have no grid: output_fmt must be 'NLC', got 'NCHW'"):
        model.forward_intermediates(IMAGES, output_fmt="NCHW")


def test_directories_with_the_same_architecture_keep_their_own_data(
    tiny_config: SparseFormerConfig, tmp_path: Path
) -> None:
    """They share a name in timm, but not their preprocessing, teacher and licence."""
    preprocessing = replace(tiny_config.preprocessing, resize=40, crop=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    other = replace(tiny_config, preprocessing=preprocessing, teacher="another", licence="another")
    assert timm_name(other) == timm_name(tiny_config)
    for name, config in (("one", tiny_config), ("two", other)):
        SparseFormer(config).save_pretrained(tmp_path / name)
        model = create_from_directory(tmp_path / name)
        assert model.config == config
        assert resolve_model_data_config(model)["mean"] == config.preprocessing.mean
        with_head = create_from_directory(tmp_path / name, num_classes=7).config
        assert (with_head.cortex.head_dim, with_head.cortex.head_bias) == (7, True)
        assert replace(with_head, cortex=config.cortex) == config


def test_average_pooling_without_a_head() -> None:
    options = {"class_token": False, "global_pool": "avg", "fc_norm": True}
    cortex = CortexConfig("vit_base_patch16_224", depth=1, width=64, heads=1, options=options)
    config = replace(VARIANTS["sparseformer-clip-b"], cortex=cortex)
    config = replace(config, focus=replace(config.focus, tokens=4, width=64, heads=1, repeats=1))
    torch.manual_seed(0)
    model = timm.create_model(timm_name(config)).eval()
    assert (model.num_classes, model.num_prefix_tokens) == (0, 0)
    features = model.forward_features(IMAGES)
    assert torch.allclose(model(IMAGES), model.cortex.trunk.fc_norm(features.mean(1)), atol=1e-6)


def test_the_head_can_be_replaced(directory: Path) -> None:
    model = create_from_directory(directory)
    assert model.get_classifier().bias is None  # the projection of CLIP
    model.reset_classifier(5)
    assert (model.num_classes, model(IMAGES).shape) == (5, (2, 5))
    assert model.get_classifier().bias is not None
    model.reset_classifier(0)
    assert torch.equal(model(IMAGES), model.forward_head(model.forward_features(IMAGES), pre_logits=True))
    other = create_from_directory(directory, num_classes=7)
    assert torch.equal(other.stem.conv.weight, model.stem.conv.weight)
    assert other(IMAGES).shape == (2, 7)


def test_a_trained_model_opens_as_an_encoder(directory: Path, tmp_path: Path) -> None:
    model = create_from_directory(directory, num_classes=7, drop_rate=0.2, drop_path_rate=0.1).eval()
    model.save_pretrained(tmp_path / "out")
    encoder = SparseFormer.from_pretrained(tmp_path / "out")
    assert torch.equal(encoder(IMAGES).pooled, model(IMAGES))
    assert "drop_path_rate" not in encoder.config.cortex.options
    assert encoder.config == model.config


def test_drop_path_only_while_training(directory: Path) -> None:
    model = create_from_directory(directory, drop_path_rate=0.9)
    assert model.cortex.trunk.blocks[-1].drop_path1.drop_prob == pytest.approx(0.9)
    torch.manual_seed(0)
    model.train()
    assert len({model(IMAGES).sum().item() for _ in range(16)}) > 1
    model.eval()
    assert torch.equal(model(IMAGES), model(IMAGES))


def test_layers_for_layer_wise_learning_rates(directory: Path) -> None:
    model = create_from_directory(directory, num_classes=3)
    groups = param_groups_layer_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    # convolution and repeated unit, last unit, first block, second block and norm, head
    assert scale["stem.conv.weight"] == scale["focus.repeated_unit.block.attn.qkv.weight"] == 0.5**4
    assert scale["focus.last_unit.sampling.points.linear.weight"] == scale["cortex.cls_embedding"] == 0.5**3
    assert [scale[f"cortex.trunk.blocks.{index}.mlp.fc1.weight"] for index in (0, 1)] == [0.5**2, 0.5]
    assert (scale["cortex.trunk.norm.weight"], scale["cortex.trunk.head.weight"]) == (0.5, 1)
    for name in ("focus.initial_rois.weight", "cortex.cls_embedding", "focus.repeated_unit.stage_embedding"):
        assert decay[name] == 0
    assert decay["cortex.trunk.head.weight"] == decay["stem.conv.weight"] == 0.1
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5)
    assert min(group["lr_scale"] for group in optimizer.param_groups) == 0.5**4


def test_timms_training_tools_work_on_it(directory: Path) -> None:
    model = create_from_directory(directory, num_classes=3)
    ema = ModelEmaV3(model, decay=0.5)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2)
    before = model(IMAGES).detach()
    torch.nn.functional.cross_entropy(model(IMAGES), torch.tensor([0, 1])).backward()
    optimizer.step()
    ema.update(model)
    assert not torch.equal(model(IMAGES), before)
    assert not torch.equal(ema.module(IMAGES), before)
    transform = create_transform(**resolve_model_data_config(model))
    assert transform.transforms[-1].mean.tolist() == pytest.approx(list(model.config.preprocessing.mean))


def test_checkpointing_gives_the_same_gradients(directory: Path) -> None:
    gradients = []
    for enabled in (False, True):
        model = create_from_directory(directory).train()
        model.set_grad_checkpointing(enabled)
        calls = []
        model.cortex.trunk.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model(IMAGES).sum().backward()
        assert len(calls) == 1 + enabled  # recomputed in the backward pass
        gradients.append(model.cortex.trunk.blocks[0].attn.qkv.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_squashed_images(tiny_config: SparseFormerConfig) -> None:
    squash = Preprocessing(resize=64, crop=64, resize_mode="squash")
    torch.manual_seed(0)
    model = TimmSparseFormer(replace(tiny_config, preprocessing=squash))
    assert model.config.preprocessing.resize_mode == "squash"


def test_unsupported_options_are_refused(directory: Path, tmp_path: Path, tiny_config: SparseFormerConfig) -> None:
    name = timm_name(tiny_config)
    for options, sentence in (
        ({"in_chans": 1}, "in_chans must be 3, got 1"),
        ({"global_pool": "avg"}, "has the pooling 'token' of its teacher; global_pool 'avg' is not available"),
        ({"features_only": True}, "does not support features_only"),
    ):
        with pytest.raises(UserError, match=sentence):
            timm.create_model(name, **options)
    with pytest.raises(UserError, match="has the pooling 'token'"):
        create_from_directory(directory).reset_classifier(3, "avg")
    with pytest.raises(TypeError, match="img_sise"):
        timm.create_model(name, img_sise=224)
    with pytest.raises(UserError, match="There is no encoder directory"):
        create_from_directory(tmp_path / "none")
    with pytest.raises(RuntimeError, match="No pretrained weights exist for sparseformer_clip_base"):
        timm.create_model("sparseformer_clip_base", pretrained=True)
