"""The encoder of clips: latent tokens whose RoIs extend over space and time, inflated from an image encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_vlm.encoder import checkpoints
from sparse_vlm.encoder.model import Encoder, EncoderOutput, SparseFormer, starting_rois
from sparse_vlm.encoder.video.inflation import inflate_config, inflate_weights
from sparse_vlm.errors import UserError

FRAMES_AT_ONCE = 32  # in the stem, whose convolution needs four times the memory of its features


class VideoSparseFormer(Encoder):
    """Encoder of clips: a few latent tokens sample the frames of a clip inside RoIs (x1, y1, t1, x2, y2, t2).

    The number of frames is free and does not change the number of tokens. The stem runs on each frame alone, and the
    sampling step interpolates between frames; apart from time, all parts are those of `SparseFormer`. On a clip that
    stands still, an encoder from `from_image_encoder` returns what the image encoder returns for one of its frames.

    Source: arXiv 2304.03768 extends SparseFormer to video by a time axis of the RoIs. The details are ours.

    Args:
        config: configuration, as of an image encoder; `focus.tokens` is the number for the whole clip. Weights are
            random.
    """

    axes = 3
    model_type = checkpoints.CLIP_ENCODER

    def forward(self, clips: Tensor, rois: Tensor | None = None, tokens: int | None = None) -> EncoderOutput:
        """Encode clips.

        Args:
            clips: float[B, T, 3, H, W] of any T, H and W, each frame normalised by `transform`.
            rois: initial RoIs (x1, y1, t1, x2, y2, t2), float[n, 6] or float[B, n, 6] with any n ≥ 1: image coordinates
                and times, [0, 1] from the beginning of the first frame to the end of the last one; None for those of
                the checkpoint.
            tokens: short for `rois=lay_out_clip_rois(tokens)`.

        Raises:
            UserError: the clips or RoIs are malformed, both `rois` and `tokens` are given, or one of them for an
                encoder of generation "v1".
        """
        return self.encode_features(self.features(clips), self._starting_rois(clips, rois, tokens))

    def hidden_states(
        self, clips: Tensor, layers: Sequence[int], rois: Tensor | None = None, tokens: int | None = None
    ) -> tuple[Tensor, ...]:
        """Compute some of `EncoderOutput.hidden_states`, without the blocks after the last of them.

        Args:
            clips, rois, tokens: inputs of `forward`.
            layers: indices of hidden states; negative ones count from the end.
        """
        return self.states_from_features(self.features(clips), layers, self._starting_rois(clips, rois, tokens))

    def features(self, clips: Tensor) -> Tensor:
        """Run the stem on each frame: float[B, T, 3, H, W] -> features float32[B, C, T, ~H/4, ~W/4].

        Only they grow with the number of frames: 4·C·H·W/16 bytes each, 0.8 MB for 224 pixels and 64 channels.
        """
        if clips.ndim != 5 or clips.shape[2] != 3 or 0 in clips.shape or not clips.is_floating_point():
            raise UserError(
                "VideoSparseFormer expects a non-empty batch of RGB clips, float[B, T, 3, H, W], "
                f"got {str(clips.dtype).removeprefix('torch.')}{list(clips.shape)}."
            )
        frames = clips.flatten(0, 1).to(self.stem.conv.weight.dtype)
        features = torch.cat([self.stem(part) for part in frames.split(FRAMES_AT_ONCE)])
        return features.unflatten(0, clips.shape[:2]).movedim(1, 2)

    def _starting_rois(self, clips: Tensor, rois: Tensor | None, tokens: int | None) -> Tensor | None:
        return starting_rois(self.config, clips, rois, tokens, self.axes)

    @classmethod
    def from_image_encoder(cls, encoder: SparseFormer, spans: int = 1) -> "VideoSparseFormer":
        """Inflate an image encoder: an encoder of clips that treats a clip which stands still as the image.

        For any clip of equal frames, any number of them and any RoIs, its output is `encoder(frame, rois=…)` with
        the RoIs' (x1, y1, x2, y2), within float32 rounding. What is new starts without effect on such a clip and is
        trained with the rest: times of the sampling points, the RoIs' adjustment in time and the encoding of their
        times.

        Args:
            encoder: either generation, in any dtype, on any device.
            spans: number of equal spans of time, each of which has all the image encoder's tokens.

        Returns:
            The encoder of clips, float32 on the CPU, in evaluation mode.

        Raises:
            UserError: `spans` is less than 1.
        """
        if spans < 1:
            raise UserError(f"A clip has at least 1 span of time, got {spans}.")
        config, weights = inflate_config(encoder.config, spans), inflate_weights(encoder, spans)
        return cls.from_weights(config, weights, source="the image encoder")
