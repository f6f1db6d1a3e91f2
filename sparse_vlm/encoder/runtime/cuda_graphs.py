"""CUDA graphs: the kernels of a model's forward pass are captured once, and later calls launch them all at once.

With a small batch, a GPU waits for the CPU to launch one kernel after another. A replayed graph runs the same kernels
on the same weights, so its outputs are identical. Source: torch.cuda.CUDAGraph, "CUDA semantics: CUDA Graphs".
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sparse_vlm.encoder.model import starting_rois
from sparse_vlm.errors import lost_by_optimisation

WARM_UPS = 3  # runs before a capture, in which libraries choose kernels and allocate workspaces


class Captured(NamedTuple):
    """A captured call.

    Attributes:
        replay: runs the call again, on the current values of its input tensors.
        outputs: tensors that each run overwrites.
        pool: memory pool of the capture.
    """

    replay: Callable[[], None]
    outputs: Any
    pool: Any


class Recorder(Protocol):
    """Interface: captures calls on one type of device."""

    device_type: str

    def capture(self, run: Callable[[], Any], device: torch.device, pool: Any) -> Captured:
        """Capture `run` in the memory pool of an earlier capture, or in a new pool if it is None."""


class CudaRecorder:
    """Recorder of torch.cuda.CUDAGraph."""

    device_type = "cuda"

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None  # the same for all captures, so that they can share memory

    def capture(self, run: Callable[[], Any], device: torch.device, pool: Any) -> Captured:
        """See `Recorder`. `run` must neither synchronise with the device nor copy from the CPU."""
        with torch.cuda.device(device):
            if self._stream is None:
                self._stream = torch.cuda.Stream()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads (a data loader, another model) may allocate memory meanwhile
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = run()
        return Captured(graph.replay, outputs, graph.pool())


class _Held(NamedTuple):
    """A captured call and its input buffers."""

    inputs: tuple[Tensor, ...]
    call: Captured


class GraphedMethod:
    """A method of an image model, captured and replayed for each image shape, dtype and choice of layers.

    The first call of a kind runs normally and the second is captured, so shapes that occur once cost nothing. Outputs
    are copies that the caller may keep. Calls that cannot be replayed run normally: on another device, under autocast,
    inside torch.compile or another capture, and if modules inside the model have hooks, which a replay would skip.
    Graphs are dropped when the model's weights move. Call it from a single CUDA stream.

    Args:
        model: in evaluation mode, without weights that require a gradient.
        method: method of the model: images, or images and layers -> tensors in (named) tuples.
        recorder: captures the calls.
        limit: maximum number of kinds; the least recently used one is dropped.
    """

    def __init__(self, model: Any, method: Callable[..., Any], recorder: Recorder, limit: int = 8) -> None:
        self._model, self._method, self._recorder, self._limit = model, method, recorder, limit
        self._parts = list(model.modules())
        self._weights: list[int] = []
        self._held: OrderedDict[tuple[object, ...], _Held | None] = OrderedDict()  # None: called once, not captured yet
        self._lock = Lock()

    def __call__(
        self,
        images: Tensor,
        layers: Sequence[int] | None = None,
        *,
        rois: Tensor | None = None,
        tokens: int | None = None,
    ) -> Any:
        """Return the output of the method; `rois` and `tokens` are inputs of a SparseFormer."""
        self._refuse_training(images)
        choice = () if layers is None else (tuple(layers),)
        inputs: tuple[Tensor, ...] = (images,)
        if rois is not None or tokens is not None:
            # checked and moved to the device here, because a capture allows neither
            initial = starting_rois(self._model.config, images, rois, tokens, self._model.focus.axes)
            assert initial is not None
            inputs = (images, initial)
        if not self._may_replay(images):
            return self._run(choice, *inputs)
        with self._lock:
            self._forget_moved_weights()
            kind = (*((tuple(each.shape), each.dtype, each.device) for each in inputs), choice)
            if kind not in self._held:
                result = self._run(choice, *inputs)
                self._remember(kind, None)
                return result
            # outside inference mode, whose tensors cannot be written to later
            with torch.inference_mode(False), torch.no_grad():
                held = self._held[kind] or self._capture(inputs, choice)
                self._remember(kind, held)
                for buffer, given in zip(held.inputs, inputs, strict=True):
                    buffer.copy_(given)
                held.call.replay()
                return _copies(held.call.outputs)

    def _run(self, choice: tuple[tuple[int, ...], ...], images: Tensor, rois: Tensor | None = None) -> Any:
        return self._method(images, *choice) if rois is None else self._method(images, *choice, rois=rois)

    def _capture(self, inputs: tuple[Tensor, ...], choice: tuple[tuple[int, ...], ...]) -> _Held:
        buffers = tuple(each.clone(memory_format=torch.contiguous_format) for each in inputs)
        pool = next((held.call.pool for held in self._held.values() if held is not None), None)
        return _Held(buffers, self._recorder.capture(lambda: self._run(choice, *buffers), inputs[0].device, pool))

    def _remember(self, kind: tuple[object, ...], held: _Held | None) -> None:
        self._held[kind] = held
        self._held.move_to_end(kind)
        if len(self._held) > self._limit:
            self._held.popitem(last=False)

    def _forget_moved_weights(self) -> None:
        """Drop the graphs if weights have moved: a graph reads them at the addresses of its capture."""
        tensors = (tensor for part in self._parts for tensor in (*part._parameters.values(), *part._buffers.values()))
        weights = [tensor.data_ptr() for tensor in tensors if tensor is not None]
        if weights != self._weights:
            self._held.clear()
            self._weights = weights

    def _may_replay(self, images: Tensor) -> bool:
        device = self._recorder.device_type
        return (
            images.device.type == device
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled(device)
            and not (device == "cuda" and torch.cuda.is_current_stream_capturing())
            and not any(part._forward_hooks or part._forward_pre_hooks for part in self._parts[1:])
        )

    def _refuse_training(self, images: Tensor) -> None:
        trains = torch.is_grad_enabled() and (
            images.requires_grad or any(weight.requires_grad for weight in self._model.parameters())
        )
        if trains or self._model.training:
            raise lost_by_optimisation("trained")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise lost_by_optimisation("copied")


def _copies(outputs: Any) -> Any:
    """Copy all tensors; a tensor that occurs twice is copied once."""
    copied: dict[int, Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        if id(tensor) not in copied:
            copied[id(tensor)] = tensor.clone()
        return copied[id(tensor)]

    return tree_map_only(Tensor, copy, outputs)


METHODS = ("forward", "hidden_states")


def replay_from_graphs(model: nn.Module, recorder: Recorder) -> None:
    """Replace `forward`, and `hidden_states` of a SparseFormer, by a `GraphedMethod`, in place. Idempotent."""
    model.eval().requires_grad_(False)
    for name in METHODS:
        method = getattr(model, name, None)
        if method is not None and not isinstance(method, GraphedMethod):
            setattr(model, name, GraphedMethod(model, method, recorder))
