"""What the networks share: the conv-BN-ReLU block, weight initialisation, pooling and the check of their arguments."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

InitScheme = Literal["default", "xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform", "dirac"]
Pooling = Literal["avg", "max"]
Activation = Literal["relu", "gelu", "silu"]

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
FULL_RESOLUTION_UP_TO = 64  # pixels: the largest map that the first 3x3 convolutions work on

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)


class Network(nn.Module):
    """Base of the networks, which have `forward_features` and a last layer `head`."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float -> (N, num_classes) logits."""
        return self.head(self.forward_features(x))


class ConvNormAct(nn.Sequential):
    """Convolution without bias (the norm's shift does its work), batch norm, activation: `conv`, `norm`, `act`.

    The zero padding `dilation * (kernel_size - 1) // 2` keeps the size at stride 1; stride s gives `ceil(size / s)`.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        kernel_size: Side of the kernel in pixels; odd.
        stride: Step of the kernel in pixels.
        dilation: Distance between neighbouring taps of the kernel in pixels.
        groups: Number of independent convolutions side by side; divides both channel counts.
        act: The activation; None leaves it off, as before a residual sum.
        norm_momentum: Share of the batch's statistics in the running ones, as torch means it.
        norm_scale: False fixes the norm's scale at 1: a buffer, not a parameter.
        pool: Side of a max pooling (`pool`) between convolution and norm, which then has fewer pixels to work on; 1 for
            none.

    Raises:
        ValueError: kernel_size is even, a number is not positive, or groups does not divide both channel counts.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: Activation | None = "relu",
        norm_momentum: float = 0.1,
        norm_scale: bool = True,
        pool: int = 1,
    ) -> None:
        super().__init__()
        check_positive(kernel_size=kernel_size, stride=stride, dilation=dilation, pool=pool)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: {kernel_size} is even; use an odd number, which padding can centre")
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
        if pool > 1:
            self.pool = nn.MaxPool2d(pool)
        self.norm = nn.BatchNorm2d(out_channels, momentum=norm_momentum)
        if not norm_scale:
            fix_weight(self.norm)
        if act:
            self.act = ACTIVATIONS[act]()


def initialize(net: nn.Module, scheme: InitScheme) -> None:
    """Draw the weights of a freshly built network anew, in place, from torch's global random state.

    - `default`: PyTorch's own initialisation stays untouched.
    - `dirac`: so too, but the first filters of a convolution, as many as it has inputs, pass these on, and a deep stack
      starts near the identity (Zagoruyko and Komodakis 2017, arXiv:1706.00388); within each group.
    - `xavier_*`: variance `2 / (fan_in + fan_out)` (Glorot and Bengio 2010, equations 12 and 16).
    - `kaiming_*`: variance `2 / fan_out` (He et al. 2015, arXiv:1502.01852, equation 14: mode fan_out, ReLU).

    Convolutions and linear layers get the scheme, fans counted within each group of a convolution. The head (the last
    linear layer) gets a normal distribution with standard deviation 0.01 (Goyal et al. 2017, arXiv:1706.02677, section
    5.1), so that the loss starts near log(num_classes). Biases become 0; norms scale by 1, or by 0 where `zero_init`
    marked them, and shift by 0. Other parameters (class tokens, attention's packed projections) stay as built, and so
    do weights that are buffers.
    """
    if scheme == "default":
        return
    if scheme == "dirac":
        for module in net.modules():
            if isinstance(module, nn.Conv2d) and "weight" not in module._buffers:
                for group in _groups(module):
                    nn.init.dirac_(group[: group.shape[1]])
        return
    draw = getattr(nn.init, f"{scheme}_")
    if scheme.startswith("kaiming"):
        draw = partial(draw, mode="fan_out", nonlinearity="relu")
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if linears and module is linears[-1]:
                nn.init.normal_(module.weight, std=0.01)
            elif "weight" not in module._buffers:
                for group in _groups(module):
                    draw(group)
        elif isinstance(module, _NORMS) and module.weight is not None:
            nn.init.constant_(module.weight, 0.0 if getattr(module, "zero_initialized", False) else 1.0)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _groups(layer: nn.Module) -> Sequence[Tensor]:
    """The weights of each group of a convolution, of which nn.init knows nothing."""
    return layer.weight.detach().chunk(getattr(layer, "groups", 1))


def fix_weight(layer: nn.Module) -> None:
    """Make the weight of a layer a buffer: it is kept with the others, and nothing trains it."""
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)


def zero_init(norm: nn.BatchNorm2d) -> None:
    """Set a norm's scale to 0, and mark the norm so that `initialize` keeps it there."""
    nn.init.zeros_(norm.weight)
    norm.zero_initialized = True


def global_pool(pooling: Pooling) -> nn.Module:
    """(N, C, H, W) -> (N, C, 1, 1) by mean or maximum."""
    return nn.AdaptiveAvgPool2d(1) if pooling == "avg" else nn.AdaptiveMaxPool2d(1)


def stride_of_stem(image_size: int) -> int:
    """1 for images of up to 64 pixels, else the smallest of 2, 4, 8... that brings them to 64 or fewer."""
    stride = 1
    while image_size > FULL_RESOLUTION_UP_TO * stride:
        stride *= 2
    return stride


def check_positive(**named: int | Sequence[int]) -> None:
    """Raise ValueError unless every number, of which a list must have one or more, is at least 1."""
    for name, value in named.items():
        numbers = [value] if isinstance(value, int) else list(value)
        if not numbers or min(numbers) < 1:
            raise ValueError(f"{name}: {value!r} must be 1 or more; use a positive whole number, or a list of them")
