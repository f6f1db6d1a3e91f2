"""Model directories and repositories on the hub that need nothing else: a card and the code beside the weights."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from sparse_vlm.hub.cards import model_card, write_card
from sparse_vlm.hub.transfer import UPLOAD_OPTIONS, upload
from sparse_vlm.vlm.hub.code import auto_map, write_code


class SelfContained(PreTrainedModel):
    """Base class of models that are saved and uploaded with a card and the code for `trust_remote_code`.

    It precedes transformers' own class among the bases.
    """

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **options: Any,
    ) -> None:
        """Save as transformers does, with its `options`, and add a model card and the code for `trust_remote_code`.

        An existing README.md that was edited or comes from elsewhere is kept.
        """
        config: Any = self.config
        uploading = {name: options.pop(name) for name in UPLOAD_OPTIONS if name in options}
        if is_main_process:
            card = model_card(
                getattr(config.vision_config, "encoder", None) or {},
                config.provenance or {},
                config.image_seq_length,
                tags=self.model_tags or (),
            )
            write_card(save_directory, card)
            write_code(save_directory)
        config.auto_map = auto_map("model")
        for part in (config.vision_config, config.text_config):  # transformers records the whole model's dtype only
            part.dtype = self.dtype
        super().save_pretrained(save_directory, is_main_process=is_main_process, **options)
        if push_to_hub and is_main_process:
            upload(save_directory, repo_id or Path(save_directory).name, **uploading)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, max_shard_size: int | str = "50GB", tags: Sequence[str] | None = None, **options: Any
    ) -> Any:
        """Upload the model with its card and code, as transformers does with its `options`; see `upload`.

        transformers would upload a card of its own instead.
        """
        self.add_model_tags(list(tags or ()))
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            return upload(folder, repo_id, **{"commit_message": "Upload model", **options})
