"""Which weights decay: one rule for every optimizer."""

from torch import nn
from torch.nn.modules.conv import _ConvNd

from sparse_vlm.encoder.float32 import LINEAR


def decayed_weights(model: nn.Module, also: tuple[type[nn.Module], ...] = ()) -> set[int]:
    """The ids of the parameters that weight decay acts on: the weight matrices of linear layers and convolutions that
    no embedding shares. So never norms, biases, RoIs, embeddings, CLS tokens or layer scales, whatever their names.

    Args:
        model: any.
        also: further modules whose `weight` is such a matrix, e.g. transformers' Conv1D.
    """
    linear = (*LINEAR, _ConvNd, *also)
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, linear)}
    return matrices - {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
