"""transformers' Llava with a SparseFormer as its vision model: projector, models, registration."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import (
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaModelOutputWithPast,
)

from sparse_vlm.encoder.batches import View as EncoderView
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.configuration import SparseVLMConfig
from sparse_vlm.vlm.dense.any_tower import build_vision_model, vision_hidden_states
from sparse_vlm.vlm.hub.saving import SelfContained
from sparse_vlm.vlm.language.head import LanguageHead
from sparse_vlm.vlm.language.positions import most_positions
from sparse_vlm.vlm.language.projector import build_projector
from sparse_vlm.vlm.language.quantization import UnquantizedVision
from sparse_vlm.vlm.views import (
    View,
    batches_of_views,
    check_count,
    check_frames,
    check_requested,
    pack_views,
    unpack_views,
)
from sparse_vlm.vlm.vision import check_free_rois, visual_tokens

# Pixels that pass the vision tower at once; more images, such as the frames of a video, pass in turns.
PIXELS_AT_ONCE = 2**23
# Inputs of ours that Llava's forward does not name
INPUTS = ("views", "pixel_values_videos", "video_frames", "mm_token_type_ids")


class SparseVLMModel(UnquantizedVision, LlavaModel):
    """LlavaModel with our projector. Also accepts visual tokens that were computed before."""

    config_class = SparseVLMConfig

    def __init__(self, config: SparseVLMConfig) -> None:
        super(LlavaModel, self).__init__(config)
        self.vision_tower = build_vision_model(config.vision_config)
        self.multi_modal_projector = build_projector(config)  # type: ignore[assignment]
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def encode_images(
        self,
        pixel_values: Tensor | None,
        views: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        pixel_values_videos: Tensor | None = None,
    ) -> list[Tensor]:
        """Compute the inputs of the projector: the chosen hidden states, without CLS if the strategy is "default".

        Images pass the vision tower in batches of PIXELS_AT_ONCE, so that memory is bounded.

        Args:
            pixel_values: float[I, 3, H, W]; None: there are frames of videos only.
            views: from `pack_views`, in the order of the placeholders, or `pack_by_image`; None: one of the default
                count per image and frame.
            vision_feature_layer, vision_feature_select_strategy: those of the configuration if None.
            pixel_values_videos: float[F, 3, H, W], the frames of all videos. They are images I to I + F - 1.

        Returns:
            float[n, C] for each view.

        Raises:
            UserError: the vision tower cannot have other numbers of tokens, or a view has too many or too few.
        """
        asked = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        layers = [asked] if isinstance(asked, int) else list(asked)
        strategy = vision_feature_select_strategy or self.config.vision_feature_select_strategy
        dropped = int(strategy == "default")
        default = self.config.image_seq_length
        images = torch.cat([pixels for pixels in (pixel_values, pixel_values_videos) if pixels is not None])
        wanted = [View(place, default) for place in range(len(images))] if views is None else unpack_views(views)
        found: dict[int, tuple[Tensor, ...]] = {}
        count = max(1, PIXELS_AT_ONCE // images[0, 0].numel())
        for start, here in batches_of_views(wanted, len(images), count):
            states = self._states(images[start : start + count], list(here.values()), layers, dropped)
            found |= dict(zip(here, states, strict=True))
        return [torch.cat([state[dropped:] for state in found[place]], dim=-1) for place in range(len(wanted))]

    def _states(
        self, images: Tensor, views: Sequence[View], layers: list[int], dropped: int
    ) -> Sequence[tuple[Tensor, ...]]:
        """Compute the chosen hidden states of views of one batch of images."""
        if all(map(self._is_default, views)):
            states = vision_hidden_states(self.vision_tower, images, layers)
            return [tuple(states[layer][view.image] for layer in layers) for view in views]
        initial = self.initial_rois(views, dropped)
        return self.vision_tower.view_hidden_states(images, initial, layers)

    def check_views(self, views: Sequence[View], dropped: int | None = None) -> None:
        """Check that this model can compute the tokens of views. Call this before long work.

        Args:
            views: see `encode_images`; their images do not matter.
            dropped: 1 if CLS is dropped, else 0; None: as in the configuration.

        Raises:
            UserError: the vision tower cannot have other numbers of tokens, or a view has too many or too few.
        """
        others = [view.tokens for view in views if not self._is_default(view)]
        if not others:
            return
        for tokens in others:
            check_count(tokens)
        check_free_rois(self.vision_tower)
        limit, kept = most_positions(self.config.get_text_config()), self._kept(dropped)
        if limit is not None and max(others) > limit:
            raise UserError(
                f"An image of {max(others)} visual tokens exceeds the {limit} positions of the language model: ask for "
                "fewer."
            )
        check_requested(others, kept + 1)

    def _is_default(self, view: View) -> bool:
        """Return whether a view is a whole image with the default number of tokens."""
        return view == View(view.image, self.config.image_seq_length)

    def _kept(self, dropped: int | None) -> int:
        """Return the number of tokens of an image that are not latent tokens."""
        if dropped is None:
            dropped = int(self.config.vision_feature_select_strategy == "default")
        return visual_tokens(self.config.vision_config).prefix - dropped

    def initial_rois(self, views: Sequence[View], dropped: int | None = None) -> list[EncoderView]:
        """Convert views to initial RoIs; see `check_views`. Default views have the checkpoint's own RoIs."""
        self.check_views(views, dropped)
        kept = self._kept(dropped)
        return [
            EncoderView(view.image, None if self._is_default(view) else lay_out_rois(view.tokens - kept, view.box))
            for view in views
        ]

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        views: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_frames: Tensor | None = None,
        **options: Any,
    ) -> tuple | BaseModelOutputWithPooling:
        """Return the projected tokens as `pooler_output`, float[n, D] for each view, or for each image if the views are
        int64[I, R, 5].

        Frames of videos are among them, in the order of the views. transformers' `generate` calls it once, with those
        of its arguments that this signature names. `options` are for Llava's own vision towers, and differ between
        versions of transformers.

        Raises:
            UserError: see `encode_images`, and if `video_frames` does not fit the frames.
        """
        choice: dict[str, Any] = {
            "vision_feature_layer": vision_feature_layer,
            "vision_feature_select_strategy": vision_feature_select_strategy,
        }
        if views is None and pixel_values_videos is None:
            return self._projected(self.encode_images(pixel_values, **choice))
        check_frames(video_frames, 0 if pixel_values_videos is None else len(pixel_values_videos))
        choice["pixel_values_videos"] = pixel_values_videos
        joined = None if views is None or views.ndim == 2 else views[..., 0].sum(1).tolist()
        return self._projected(self.encode_images(pixel_values, views, **choice), joined)

    def get_video_features(
        self, pixel_values_videos: Tensor, video_frames: Tensor | None = None, frame_tokens: int | None = None
    ) -> BaseModelOutputWithPooling:
        """Return the projected tokens of videos as `pooler_output`, float[frames · n, D] for each video.

        Args:
            pixel_values_videos: float[F, 3, H, W], the frames of all videos.
            video_frames: int64[N], the number of frames of each video; None: one video.
            frame_tokens: number n of tokens of each frame; None: that of an image.

        Raises:
            UserError: the numbers do not fit the frames or the vision tower.
        """
        check_frames(video_frames, len(pixel_values_videos))
        tokens = self.config.image_seq_length if frame_tokens is None else frame_tokens
        views = pack_views([View(frame, tokens) for frame in range(len(pixel_values_videos))])
        frames = self._projected(self.encode_images(None, views, pixel_values_videos=pixel_values_videos)).pooler_output
        counts = [len(pixel_values_videos)] if video_frames is None else [int(count) for count in video_frames]
        split: Any = [part.flatten(0, 1) for part in torch.stack(list(frames or ())).split(counts)]
        return BaseModelOutputWithPooling(pooler_output=split)

    def _projected(self, tokens: Sequence[Tensor], counts: list[int] | None = None) -> BaseModelOutputWithPooling:
        """Project the tokens of views, and divide them into parts of `counts` tokens; None: views."""
        projector: Any = self.multi_modal_projector
        # cached tokens may have another dtype
        projected = projector(torch.cat(list(tokens)).to(projector.norm.weight.dtype))
        split: Any = list(projected.split([len(view) for view in tokens] if counts is None else counts))
        return BaseModelOutputWithPooling(pooler_output=split)

    def forward(
        self,
        *args: Any,
        pixel_values: Tensor | None = None,
        views: Tensor | None = None,
        visual_tokens: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_frames: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        **inputs: Any,
    ) -> tuple | LlavaModelOutputWithPast:
        """Run LlavaModel, with its `args` and `inputs`.

        Args:
            pixel_values: float[I, 3, H, W].
            views: see `encode_images`.
            visual_tokens: float[T, C], the tokens of all placeholders from `encode_images`, instead of `pixel_values`.
            pixel_values_videos: float[F, 3, H, W], see `encode_images`.
            video_frames: int64[N], the number of frames of each video.
            mm_token_type_ids: ignored: the modality of a token does not matter here.
        """
        if visual_tokens is not None:
            inputs["mm_encoder_outputs"] = {"image": self._projected([visual_tokens.flatten(0, -2)])}
        elif pixel_values_videos is not None or (views is not None and pixel_values is not None):
            layer, strategy = inputs.get("vision_feature_layer"), inputs.get("vision_feature_select_strategy")
            features: Any = self.get_image_features(
                pixel_values, layer, strategy, views, pixel_values_videos, video_frames
            )
            inputs["mm_encoder_outputs"] = {"image": features}
        elif pixel_values is not None:
            inputs["pixel_values"] = pixel_values
        return super().forward(*args, **inputs)


class SparseVLMForConditionalGeneration(SelfContained, UnquantizedVision, LlavaForConditionalGeneration):
    """LlavaForConditionalGeneration with SparseVLMModel. Loss, generation, saving and loading are inherited."""

    config_class = SparseVLMConfig

    def __init__(self, config: SparseVLMConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = SparseVLMModel(config)
        self.lm_head = LanguageHead(config)
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{self._embedding_name()}.weight"}
        self.post_init()

    def _embedding_name(self) -> str:
        """Return the name of the language model's input embeddings. Llava assumes `embed_tokens`; GPT-2's are `wte`."""
        language_model: Any = self.model.language_model
        embedding = language_model.get_input_embeddings()
        return next(name for name, module in language_model.named_modules() if module is embedding)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Accept INPUTS in `generate`: transformers reads the known names from the signature of Llava's forward."""
        generation: Any = super()  # transformers' annotation of self does not fit its own Llava
        generation._validate_model_kwargs({name: value for name, value in model_kwargs.items() if name not in INPUTS})


AutoModel.register(SparseVLMConfig, SparseVLMModel)
AutoModelForImageTextToText.register(SparseVLMConfig, SparseVLMForConditionalGeneration)
AutoModelForMultimodalLM.register(SparseVLMConfig, SparseVLMForConditionalGeneration)
