"""The rule for weight decay, shared by all optimizers."""

from torch import nn
from torch.nn.modules.conv import _ConvNd

from sparse_vlm.encoder.float32 import LINEAR


def decayed_weights(model: nn.Module, also: tuple[type[nn.Module], ...] = ()) -> set[int]:
    """Return the ids of the parameters that weight decay acts on.

    These are the weight matrices of linear layers and convolutions that no embedding shares. Norms, biases, RoIs,
    embeddings, CLS tokens and layer scales never decay, whatever their names.

    Args:
        model: any model.
        also: further module types whose `weight` is such a matrix, e.g. transformers' Conv1D.
    """
    linear = (*LINEAR, _ConvNd, *also)
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, linear)}
    return matrices - {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
