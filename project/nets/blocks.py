"""What the networks share: the conv-BN-ReLU block, weight initialisation, pooling and the check of their arguments."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import nn

InitScheme = Literal["default", "xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform"]
Pooling = Literal["avg", "max"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)


class ConvNormAct(nn.Sequential):
    """Convolution without bias (the norm's shift does its work), batch norm, ReLU: `conv`, `norm`, `act`.

    The zero padding `dilation * (kernel_size - 1) // 2` keeps the size at stride 1; stride s gives `ceil(size / s)`.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        kernel_size: Side of the kernel in pixels; odd.
        stride: Step of the kernel in pixels.
        dilation: Distance between neighbouring taps of the kernel in pixels.
        groups: Number of independent convolutions side by side; divides both channel counts.
        act: False leaves the ReLU off, as before a residual sum.

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
        act: bool = True,
    ) -> None:
        super().__init__()
        check_positive(kernel_size=kernel_size, stride=stride, dilation=dilation)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: {kernel_size} is even; use an odd number, which padding can centre")
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        if act:
            self.act = nn.ReLU()


def initialize(net: nn.Module, scheme: InitScheme) -> None:
    """Draw the weights of a freshly built network anew, in place, from torch's global random state.

    - `default`: PyTorch's own initialisation stays untouched.
    - `xavier_*`: variance `2 / (fan_in + fan_out)` (Glorot and Bengio 2010, equations 12 and 16).
    - `kaiming_*`: variance `2 / fan_out` (He et al. 2015, arXiv:1502.01852, equation 14: mode fan_out, ReLU).

    Convolutions and linear layers get the scheme, fans counted within each group of a convolution. The head (the last
    linear layer) gets a normal distribution with standard deviation 0.01 (Goyal et al. 2017, arXiv:1706.02677, section
    5.1), so that the loss starts near log(num_classes). Biases become 0; norms scale by 1, or by 0 where `zero_init`
    marked them, and shift by 0. Other parameters (class tokens, attention's packed projections) stay as built.
    """
    if scheme == "default":
        return
    draw = getattr(nn.init, f"{scheme}_")
    if scheme.startswith("kaiming"):
        draw = partial(draw, mode="fan_out", nonlinearity="relu")
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if linears and module is linears[-1]:
                nn.init.normal_(module.weight, std=0.01)
            else:
                # nn.init knows nothing of groups
                for group in module.weight.detach().chunk(getattr(module, "groups", 1)):
                    draw(group)
        elif isinstance(module, _NORMS) and module.weight is not None:
            nn.init.constant_(module.weight, 0.0 if getattr(module, "zero_initialized", False) else 1.0)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def zero_init(norm: nn.BatchNorm2d) -> None:
    """Set a norm's scale to 0, and mark the norm so that `initialize` keeps it there."""
    nn.init.zeros_(norm.weight)
    norm.zero_initialized = True


def global_pool(pooling: Pooling) -> nn.Module:
    """(N, C, H, W) -> (N, C, 1, 1) by mean or maximum."""
    return nn.AdaptiveAvgPool2d(1) if pooling == "avg" else nn.AdaptiveMaxPool2d(1)


def check_positive(**named: int | Sequence[int]) -> None:
    """Raise ValueError unless every number, of which a list must have one or more, is at least 1."""
    for name, value in named.items():
        numbers = [value] if isinstance(value, int) else list(value)
        if not numbers or min(numbers) < 1:
            raise ValueError(f"{name}: {value!r} must be 1 or more; use a positive whole number, or a list of them")
