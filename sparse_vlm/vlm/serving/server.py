"""The command `sparse-vlm serve`: opens a model directory and listens for requests."""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.model_directory import MODEL_TYPE, read_config
from sparse_vlm.vlm.language.quantization import quantization
from sparse_vlm.vlm.loading import load_vlm


def serve(
    model_dir: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    dtype: str = "auto",
    bits: int | None = None,
    served_name: str | None = None,
    max_images: int = 16,
    max_megapixels: float = 64,
    max_megabytes: float = 100,
    max_new_tokens: int = 1024,
    max_requests: int = 64,
    image_urls: str = "none",
    fetch_seconds: float = 10,
    api_key: str | None = None,
    allow_origin: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> None:
    """Serve a model directory behind an OpenAI-compatible API until interrupted.

    Args:
        model_dir: written by `build_vlm` or a training stage.
        host, port: the address to listen on; port 0 selects a free one.
        device, dtype: see `choose_device` and `choose_dtype`.
        bits: 4 or 8 bits for the language model's weights; None: `dtype`.
        served_name: the model's name in requests; None: the last part of the directory's path. Requests may also give
            the path itself.
        max_images, max_megabytes: limits per request.
        max_megapixels: limit per image.
        max_new_tokens: limit per answer where the request sets none.
        max_requests: limit on requests at once.
        image_urls, fetch_seconds: see `Addresses`.
        api_key: the key that requests must carry; None: the environment variable SPARSE_VLM_API_KEY, or none.
        allow_origin, ignore: see `origins` and `ignored` of `Access`.
    """
    if read_config(model_dir).get("model_type") != MODEL_TYPE:
        raise UserError(f"{model_dir} is not a model directory. `sparse-vlm build` makes one.")
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"The server needs {' and '.join(missing)}: pip install 'sparse-vlm[serve]'.")
    import uvicorn

    from sparse_vlm.vlm.serving.access import Access
    from sparse_vlm.vlm.serving.addresses import Addresses
    from sparse_vlm.vlm.serving.app import Served, create_app
    from sparse_vlm.vlm.serving.engine import Engine

    addresses = Addresses(image_urls, fetch_seconds, max_megapixels)
    key = os.environ.get("SPARSE_VLM_API_KEY") or None if api_key is None else api_key
    access = Access(addresses, max_images, max_megabytes, key, allow_origin, ignore)
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    settings = None if bits is None else quantization(bits, kind)
    with _listen(host, port) as listening:
        model, processor = load_vlm(model_dir, kind, quantization=settings, device=place)
        served = Served(
            Engine(model, processor, max_new_tokens, max_requests),
            _names(model_dir, served_name),
            access,
            created=int(Path(model_dir, "config.json").stat().st_mtime),
        )
        print(f"{served.names[0]} on {place}: {_url(host, listening)}", flush=True)
        config = uvicorn.Config(create_app(served), log_level="warning", timeout_graceful_shutdown=5)
        with suppress(KeyboardInterrupt):  # uvicorn raises it again after shutting down
            uvicorn.Server(config).run(sockets=[listening])


def _url(host: str, listening: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}/v1"


def _names(model_dir: str | Path, served_name: str | None) -> Sequence[str]:
    path = Path(model_dir).resolve()
    return list(dict.fromkeys([served_name or path.name, path.name, str(model_dir), str(path)]))


def _listen(host: str, port: int) -> socket.socket:
    """Open the listening socket. Called before the model is loaded, so that an unusable address fails at once."""
    if not 0 <= port <= 65_535:
        raise UserError(f"--port must be between 0 and 65535, got {port}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UserError(f"Cannot listen on {host}, port {port}: {one_line(error)}. Choose another address.") from error
    listening.listen()
    return listening
