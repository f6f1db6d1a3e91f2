"""Builds a model directory: a vision encoder, a new projector and any causal LM, for `from_pretrained` to open."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparse_vlm.dtypes import DTYPES, convert
from sparse_vlm.errors import UserError, one_line, unknown_choice
from sparse_vlm.files import check_output, new_directory
from sparse_vlm.hub.cards import CARD, licence_in
from sparse_vlm.hub.transfer import local_directory
from sparse_vlm.vlm.image_processor import SparseFormerImageProcessor
from sparse_vlm.vlm.language.causal_lm import load_llm, settle_generation
from sparse_vlm.vlm.language.control_tokens import add_image_token
from sparse_vlm.vlm.language.positions import most_positions
from sparse_vlm.vlm.language.projector import build_projector
from sparse_vlm.vlm.language.templates import prepare_chat_template
from sparse_vlm.vlm.language.turns import ChatFormat, check_round_trip, end_tokens
from sparse_vlm.vlm.loading import check_opens
from sparse_vlm.vlm.modeling import SparseVLMConfig, SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from sparse_vlm.vlm.towers import VisionTower, open_tower
from sparse_vlm.vlm.vision import SparseFormerVisionModel, check_free_rois, visual_tokens

FRAME_TOKENS = (16, 9)


def build_vlm(
    encoder_dir: str | Path,
    llm: str | Path,
    out_dir: str | Path,
    *,
    gguf_file: str | None = None,
    chat_template: str | Path | None = None,
    projector: str = "mlp2x_gelu",
    vision_feature_layer: int = -2,
    vision_feature_select_strategy: str = "default",
    aspect: str = "crop",
    image_size: int | None = None,
    teacher_layer: int | None = None,
    dtype: str | None = None,
    seed: int = 0,
) -> None:
    """Write a model directory with an encoder, an LLM and a new projector between them, atomically.

    Args:
        encoder_dir: a directory of `SparseFormer.save_pretrained`, or a dense ViT to compare it with; see `open_tower`.
        llm: directory or hub name of a causal LM, or a .gguf file; see `load_llm`.
        out_dir: the output directory.
        gguf_file: name of the GGUF file if `llm` is its directory.
        chat_template: a Jinja file or text, or "llava_v1"; None: the LLM's own.
        projector: "mlp2x_gelu" or "linear".
        vision_feature_layer: index of the encoder's hidden state to use; -2 enters the last block.
        vision_feature_select_strategy: "default": the n latent tokens (or the patches); "full": CLS as well, if there
            is one.
        aspect: "crop": the model sees the central square of an image; "native": the whole image in its own aspect
            ratio.
        image_size, teacher_layer: of a dense ViT; see `open_tower`.
        dtype: dtype of the weights, a key of DTYPES (coordinates stay float32); None: the LLM's own, or float32 for
            GGUF.
        seed: seed for the projector's initialization.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown_choice("--dtype", dtype, DTYPES)
    check_output(out_dir, encoder_dir, llm)
    tower = open_tower(encoder_dir, aspect, image_size=image_size, teacher_layer=teacher_layer)
    _check_layer(tower, vision_feature_layer)
    language_model, tokenizer = _prepare_llm(llm, gguf_file, chat_template)
    # without CLS both strategies select the same tokens, but "default" would make Llava drop the first latent token
    prefix = visual_tokens(tower.model.config).prefix
    strategy: Any = vision_feature_select_strategy if prefix else "full"
    config = SparseVLMConfig(
        vision_config=tower.model.config,
        text_config=language_model.config,
        image_token_index=add_image_token(tokenizer),
        projector_type=projector,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy=strategy,
        provenance={"language_model": _public_name(llm), "language_model_licence": _licence(llm), "stages": []},
        language_head_bias=getattr(language_model.get_output_embeddings(), "bias", None) is not None,
    )
    processor = SparseVLMProcessor(
        SparseFormerImageProcessor.from_preprocessing(tower.preprocessing, aspect),
        tokenizer,
        num_image_tokens=config.image_seq_length,
        chat_template=tokenizer.get_chat_template(),
        fewest_image_tokens=1 + (prefix if strategy == "full" else 0),
        fixed_tokens=_fixed_tokens(tower.model),
        frame_tokens=_frame_tokens(tower, config.image_seq_length, strategy),
    )
    _check_positions(language_model, processor)
    model = _assemble(config, tower.model, language_model, seed)
    convert(model, language_model.dtype if dtype is None else DTYPES[dtype])
    with new_directory(out_dir) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        check_opens(temporary)


def _fixed_tokens(tower: PreTrainedModel) -> str | None:
    """Return why a vision tower takes neither another number of tokens nor regions; None: it does."""
    try:
        check_free_rois(tower)
    except UserError as error:
        return str(error)
    return None


def _frame_tokens(tower: VisionTower, image_tokens: int, strategy: str) -> int | None:
    """Return the default number of visual tokens of a frame of a video; None: that of an image.

    It is one of FRAME_TOKENS if the encoder was trained with so few.
    """
    if not isinstance(tower.model, SparseFormerVisionModel):
        return None
    kept = 0 if strategy == "default" else visual_tokens(tower.model.config).prefix
    trained = tower.model.encoder.config.token_counts
    return next((count + kept for count in FRAME_TOKENS if count in trained and count + kept < image_tokens), None)


def _check_layer(tower: VisionTower, layer: int) -> None:
    """Raise UserError if a vision tower has no hidden state `layer`."""
    if not -tower.depth - 1 <= layer <= tower.depth:
        raise UserError(
            f"vision_feature_layer {layer} does not exist: the encoder has {tower.depth} blocks, so it must be between "
            f"{-tower.depth - 1} and {tower.depth}."
        )


def _prepare_llm(
    llm: str | Path, gguf_file: str | None, chat_template: str | Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open an LLM and its tokenizer, and give them the chat template, `<image>` and the stops of generation."""
    language_model, tokenizer = load_llm(llm, gguf_file)
    template = prepare_chat_template(tokenizer, chat_template)
    _prepare_tokenizer(tokenizer, template, add_image_token(tokenizer))
    settle_generation(language_model, tokenizer)
    _grow_embeddings(language_model, len(tokenizer))
    language_model.config.name_or_path = ""  # no path of this machine in the result
    return language_model, tokenizer


def _check_positions(language_model: PreTrainedModel, processor: SparseVLMProcessor) -> None:
    """Raise UserError if an image, a short question and an answer's first token exceed the LLM's positions."""
    tokenizer = processor.tokenizer
    image_token_id, tokens = add_image_token(tokenizer), processor.num_image_tokens
    chat = ChatFormat(tokenizer, tokenizer.get_chat_template(), image_token_id, tokens)
    positions = most_positions(language_model.config)
    prompt = len(chat.tokens(chat.render([("user", "<image>\nWhat?")], open_answer=True)))
    if positions is not None and prompt >= positions:
        raise UserError(
            f"The LLM takes {positions} tokens, but an image and a short question need {prompt} "
            "under the chat template. Choose an LLM with a longer context, or an encoder with fewer tokens."
        )


def _public_name(llm: str | Path) -> str:
    """Return the LLM's name for the model card: its hub name, or the last part of its path."""
    return Path(llm).name if Path(llm).exists() else str(llm)


def _licence(llm: str | Path) -> str:
    """Return the licence that the card of an LLM's directory or hub repository names; "" if unknown."""
    try:
        return licence_in(local_directory(llm, CARD))
    except UserError:  # not on the hub, or no network
        return ""


def _grow_embeddings(language_model: PreTrainedModel, tokens: int) -> None:
    """Grow the embeddings to at least `tokens` rows, a multiple of 64 for speed on a GPU.

    Each new row is the mean of the old ones: its logit is the mean of the old logits, hence never the largest, and no
    new id is ever the most likely answer.
    """
    old = _weight(language_model.get_input_embeddings()).shape[0]
    if old >= tokens:
        return
    language_model.resize_token_embeddings(tokens, pad_to_multiple_of=64, mean_resizing=False)
    with torch.no_grad():
        for layer in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
            for rows in layer.parameters():  # the weight, and the bias if the head has one
                rows[old:] = rows[:old].mean(dim=0)


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def _assemble(
    config: SparseVLMConfig, vision_tower: PreTrainedModel, language_model: PreTrainedModel, seed: int
) -> SparseVLMForConditionalGeneration:
    """Assemble the model from its parts, without copying weights."""
    head = language_model.get_output_embeddings()
    width = _weight(language_model.get_input_embeddings()).shape[1]
    if width != config.get_text_config().hidden_size:
        raise UserError(
            f"A {type(language_model).__name__} with embeddings of width {width} and layers of width "
            f"{config.get_text_config().hidden_size} does not fit into transformers' Llava. Choose another LLM."
        )
    with torch.device("meta"):
        model = SparseVLMForConditionalGeneration(config)
    body: Any = model.model
    body.vision_tower = vision_tower
    body.multi_modal_projector = _new_projector(config, language_model.get_input_embeddings(), seed)
    body.language_model = language_model.base_model
    model.lm_head.load_state_dict(head.state_dict(keep_vars=True), assign=True)
    model.tie_weights()
    model.generation_config = language_model.generation_config
    _check_same_logits(model.eval(), language_model)
    return model


@torch.no_grad()
def _check_same_logits(model: SparseVLMForConditionalGeneration, language_model: PreTrainedModel) -> None:
    """Raise UserError if the VLM's logits differ from the LLM's: some LLMs scale them (Granite, Cohere)."""
    ids = torch.arange(1, 9)[None]
    expected, name = language_model(ids).logits, type(language_model).__name__
    try:
        difference = (model(input_ids=ids).logits - expected).abs().max() / expected.abs().max()
    except Exception as error:  # e.g. a model without keys and values
        raise UserError(f"A {name} does not run inside transformers' Llava: {one_line(error)}") from error
    if not difference < 1e-3:
        raise UserError(
            f"A {name} computes its logits in an unsupported way: the VLM's logits differ from them by "
            f"{difference:.2g} of the largest one. Choose another LLM."
        )


@torch.no_grad()
def _new_projector(config: SparseVLMConfig, embed: nn.Module, seed: int) -> nn.Sequential:
    """Create a random projector whose outputs have the rms of the LLM's embeddings `embed` (including Gemma's factor).

    After the LayerNorm the inputs of its linear layers have unit rms for any encoder; here normal vectors replace them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = build_projector(config)
        linears = [module for module in projector if isinstance(module, nn.Linear)]
        for linear in linears:
            nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))
            nn.init.zeros_(linear.bias)
        inputs = torch.randn(256, linears[0].in_features)
    rms = projector(inputs).square().mean().sqrt()
    embeddings = embed(torch.arange(_weight(embed).shape[0]))
    linears[-1].weight *= embeddings.float().square().mean().sqrt() / rms
    return projector


def _prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, chat_template: str, image_token_id: int) -> None:
    """Set the tokenizer's template, and its eos token, which ends a turn, and padding token where they are missing."""
    tokenizer.chat_template = chat_template
    check_round_trip(ChatFormat(tokenizer, chat_template, image_token_id, 1))
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end_tokens(tokenizer, chat_template)[0])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
