"""Names the type of a module, for tables: convolution, attention, feed_forward, ... No rule depends on it."""

from torch import nn

# The first row with a part of the lower-case class name decides.
MODULE_TYPES = (
    ("convolution", ("conv1d", "conv2d", "conv3d", "convtranspose", "compatibleconv", "causalconv")),
    ("linear", ("linear",)),
    ("resnet", ("resnet", "resblock", "residualblock")),
    ("normalisation", ("norm",)),
    ("activation", ("silu", "relu", "swiglu", "geglu", "gelu", "mish", "sigmoid", "swish", "tanh")),
    ("feed_forward", ("feedforward", "mlp", "glumbconv")),
    ("transformer_block", ("transformerblock", "ditblock", "transformer1dblock", "transformer2dblock")),
    ("transformer", ("transformer",)),
    ("upsample", ("upsample",)),
    ("downsample", ("downsample",)),
    ("embedding", ("embed", "timesteps", "projection")),
    ("stage", ("downblock", "upblock", "midblock")),
    ("attention", ("attention", "attn")),
)


def module_type(module: nn.Module) -> str:
    """The type of a module by its class name; the class name itself where no row matches."""
    class_name = type(module).__name__.lower().replace("_", "")
    matches = (name for name, parts in MODULE_TYPES if any(part in class_name for part in parts))
    return next(matches, class_name)
