"""Every classification network of torchvision, and of timm where it is installed, cut before its last layer.

`backbone` gives pooled features (N, D), `head` is a fresh linear layer. State-dict keys are the library's own behind
`backbone.`, so that published weights fit.
"""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from project.errors import UserError
from project.nets.blocks import Network


class _LibraryModel(Network):
    """`backbone`, then `head`."""

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float -> (N, D): what the network's own head would have read."""
        return self.backbone(x)


class TorchvisionModel(_LibraryModel):
    """A torchvision classification network with random weights, its first convolution and head made to fit the data.

    GoogLeNet and Inception come without their auxiliary heads. SqueezeNet's head, a 1x1 convolution and a ReLU before
    the pooling, becomes a linear layer after it, without the ReLU that would forbid negative logits.

    Args:
        in_channels: Channels of the images; the first convolution is adapted when they are not 3.
        num_classes: Number of classes.
        image_size: Height and width of the images in pixels; vision transformers and MaxViT are built for it.
        name: Name in torchvision.models, such as resnet50, convnext_tiny or vit_b_16.

    Attributes:
        head_name: Where the head was in torchvision's network, such as fc or classifier.1.

    Raises:
        UserError: torchvision has no network of that name, or it cannot take images of that size.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: int, name: str) -> None:
        super().__init__()
        self.name = name
        names = list_models(module=torchvision.models)
        if name not in names:
            raise _unknown(name, names, "torchvision")
        options = {}
        if name.startswith("vit"):
            options["image_size"] = image_size
        elif name.startswith("maxvit"):
            options["input_size"] = (image_size, image_size)
        elif name in ("googlenet", "inception_v3"):
            options.update(aux_logits=False, init_weights=True)  # init_weights named, or torchvision warns
        with _errors_explained(name, image_size, get_model_weights(name).DEFAULT.transforms().crop_size[0]):
            self.backbone = get_model(name, weights=None, num_classes=num_classes, **options)
            layers = [(key, m) for key, m in self.backbone.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
            (_, conv), (self.head_name, head) = layers[0], layers[-1]  # registered first and last in every family
            if in_channels != 3:
                conv.in_channels = in_channels
                conv.weight = nn.Parameter(to_channels(conv.weight.detach(), in_channels))
            self.backbone.set_submodule(self.head_name, nn.Identity())
            _feature_width(self.backbone, in_channels, image_size)
        self.head = head
        if isinstance(head, nn.Conv2d):
            self.head = nn.Linear(head.in_channels, head.out_channels)
            self.head.weight = nn.Parameter(head.weight.detach().flatten(1))  # (out, in, 1, 1) -> (out, in)
            self.head.bias = head.bias


class TimmModel(_LibraryModel):
    """A network of the timm library with random weights; needs `pip install -e ".[timm]"`.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        image_size: Height and width of the images in pixels; passed on to networks that are built for one size.
        name: Name in timm.list_models(), such as resnet18d or convnext_nano.
        drop_rate: Probability of dropout before the head; null keeps the network's own.
        drop_path_rate: Of skipping the last block's residual branch, less in earlier ones (stochastic depth, Huang et
            al. 2016, arXiv:1603.09382); null likewise.

    Attributes:
        head_name: Where the head was in timm's network, such as fc or head.fc; None for networks with two.

    Raises:
        UserError: timm is not installed or has no network of that name, or the network refuses an option or the size.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        name: str,
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise UserError('net: TimmModel needs the timm library; run pip install -e ".[timm]"') from error
        if not timm.is_model(name):
            raise _unknown(name, timm.list_models(), "timm")
        options = {"num_classes": 0, "in_chans": in_channels, "drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
        with _errors_explained(name, image_size, timm.get_pretrained_cfg(name).input_size[-1]):
            try:
                self.backbone = timm.create_model(name, img_size=image_size, **options)
            except TypeError:  # a network without a fixed size
                self.backbone = timm.create_model(name, **options)
            width = _feature_width(self.backbone, in_channels, image_size)
        classifier = self.backbone.pretrained_cfg.get("classifier")
        self.head_name = classifier if isinstance(classifier, str) else None
        self.head = nn.Linear(width, num_classes)


def to_channels(weight: Tensor, in_channels: int) -> Tensor:
    """(out, C, k, k) -> (out, in_channels, k, k): the C in turn, scaled by C / in_channels; one takes the sum of all.

    Grey images in one channel and in three equal ones give the same, if all channels are normalised alike.
    """
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    theirs = weight.shape[1]
    return weight[:, [i % theirs for i in range(in_channels)]] * (theirs / in_channels)


@torch.no_grad()
def _feature_width(backbone: nn.Module, in_channels: int, image_size: int) -> int:
    """Number of features, found by showing the network one black image."""
    features = backbone.eval()(torch.zeros(1, in_channels, image_size, image_size))  # (1, D)
    backbone.train()
    return features.shape[1]


@contextmanager
def _errors_explained(name: str, image_size: int, usual_size: int) -> Iterator[None]:
    """One line for what networks raise where patches or poolings do not fit the image, or for an unknown option."""
    try:
        yield
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        size = f"{image_size} x {image_size} pixels (its usual size is {usual_size})"
        raise UserError(f"net: {name} cannot be built for images of {size}: {reason}") from error


def _unknown(name: str, names: Sequence[str], library: str) -> UserError:
    close = ", ".join(difflib.get_close_matches(name, names, cutoff=0))
    return UserError(f"name: {library} has no network {name!r}; the closest names are {close}")
