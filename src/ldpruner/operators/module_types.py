"""What a module is called: convolution, attention, feed-forward, ... For tables only; no rule depends on it."""

from torch import nn

# The first row that matches a class name, in lower case, gives the kind.
MODULE_TYPES = (
    (
        "convolution",
        ("conv1d", "conv2d", "conv3d", "convtranspose", "compatibleconv", "causalconv"),
    ),
    ("linear", ("linear",)),
    ("resnet", ("resnet", "resblock", "residualblock")),
    ("normalisation", ("norm",)),
    (
        "activation",
        (
            "silu",
            "relu",
            "swiglu",
            "geglu",
            "approximategelu",
            "mish",
            "sigmoid",
            "swish",
            "tanh",
            "gelu",
        ),
    ),
    ("feed_forward", ("feedforward", "mlp", "glumbconv")),
    (
        "transformer_block",
        ("transformerblock", "ditblock", "transformer1dblock", "transformer2dblock"),
    ),
    ("transformer", ("transformer",)),
    ("upsample", ("upsample",)),
    ("downsample", ("downsample",)),
    ("embedding", ("embed", "timesteps", "projection")),
    ("stage", ("downblock", "upblock", "midblock")),
    ("attention", ("attention", "attn")),
)


def module_type(module: nn.Module) -> str:
    """The kind of a module, read off its class name; the name itself where no kind fits."""
    name = type(module).__name__.lower().replace("_", "")
    return next((kind for kind, parts in MODULE_TYPES if any(part in name for part in parts)), name)
