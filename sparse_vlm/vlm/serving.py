"""A model directory behind an OpenAI-compatible API, by transformers' own server (`transformers serve`).

The server looks a model's class up by name among transformers' own: with `trust_remote_code` alone it opens the
directory's configuration and then stops. So it runs in a process that has told it of our class.
"""

from collections.abc import Sequence
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils.import_utils import is_serve_available

from sparse_vlm.errors import UserError
from sparse_vlm.model_directory import MODEL_TYPE, read_config
from sparse_vlm.vlm.modeling import SparseVLMConfig, SparseVLMForConditionalGeneration


def tell_server() -> None:
    """Makes our model known to transformers' server, as one that takes pictures. Calling it again does nothing."""
    name = SparseVLMForConditionalGeneration.__name__
    setattr(transformers, name, SparseVLMForConditionalGeneration)
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[SparseVLMConfig.model_type] = name


def serve(model_dir: str | Path, options: Sequence[str] = ()) -> None:
    """Serves a model directory until it is interrupted; ends with SystemExit, as transformers' command does.

    Args:
        model_dir: of `build_vlm` or a stage; requests name it by this very path.
        options: of `transformers serve`, e.g. ["--port", "8000"].

    Raises:
        UserError: it is no model directory, or the server's packages are missing.
    """
    if read_config(model_dir).get("model_type") != MODEL_TYPE:
        raise UserError(f"{model_dir} is no model directory of ours. `sparse-vlm build` makes one.")
    if not is_serve_available():
        raise UserError("The server's packages are missing: pip install 'sparse-vlm[serve]'.")
    from transformers.cli.transformers import app

    tell_server()
    app(["serve", str(model_dir), *options], prog_name="transformers")
