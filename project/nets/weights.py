"""Weights to start from: published ones, a state dict or a checkpoint. What fits is loaded, the rest is reported."""

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mode

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from project.errors import UserError
from project.nets.backbone import TimmModel, TorchvisionModel, to_channels
from project.nets.published import fetch_weights

ENTRIES = ("state_dict", "model", "model_state_dict", "model_ema", "net")  # where training scripts put the state dict
OLD_NAMES = (  # in the published DenseNets and vision transformers of torchvision
    (r"(denselayer\d+\.(?:norm|conv))\.", r"\1"),
    (r"\bmlp\.linear_1\.", "mlp.0."),
    (r"\bmlp\.linear_2\.", "mlp.3."),
)

State = dict[str, Tensor]


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor, by its name in the network; of those unexpected, by their name in the file."""

    source: str
    loaded: list[str]
    left_out: list[str]  # with the reason: another shape, or a head for other classes
    missing: list[str]  # not in the file
    unexpected: list[str]  # not in the network
    mean: Sequence[float] | None  # the normalisation that belongs to the weights, where it is known
    std: Sequence[float] | None

    def lines(self, limit: int = 8) -> list[str]:
        """Text for the terminal: how many tensors were loaded, and up to `limit` names of each other kind."""
        total = len(self.loaded) + len(self.left_out) + len(self.missing)
        text = [f"weights: {self.source}", f"  loaded {len(self.loaded)} of {total} tensors"]
        for kind in ("left_out", "missing", "unexpected"):
            if names := getattr(self, kind):
                shown = names[:limit] + ["..."] * (len(names) > limit)
                text.append(f"  {kind.replace('_', ' ')} {len(names)}: {', '.join(shown)}")
        return text


def load_weights(net: nn.Module, weights: str, class_names: list[str] | None = None) -> LoadReport:
    """Load what fits by name and shape, in place; adapt the first convolution and torchvision's position embeddings.

    Args:
        net: The network.
        weights: Name of published weights, or path of a state dict (.pt, .pth, .bin, .safetensors) or a checkpoint.
        class_names: Of the network's outputs. A head that is known to be for other classes is left out.

    Raises:
        UserError: no such name or file, a damaged file, or nothing that fits; the network is then unchanged.
    """
    source = fetch_weights(net, weights)
    mean, std, their_classes = source.mean, source.std, source.class_names
    content = _read(source.path)
    state = next((content[entry] for entry in ENTRIES if isinstance(content.get(entry), dict)), content)
    state = {key.removeprefix("normalise."): value for key, value in state.items() if isinstance(value, Tensor)}
    if "hyper_parameters" in content and {"mean", "std"} <= state.keys():  # a checkpoint of ours
        mean, std = (state[key].flatten().tolist() for key in ("mean", "std"))
        their_classes = content["hyper_parameters"].get("class_names")
        state = {key: tensor for key, tensor in state.items() if key.startswith("net.")}  # without metrics and loss
    if {"scale", "shift"} <= state.keys():  # of project.nets.deployable
        raise UserError(f"model.weights: the batch norms of {weights} are folded; give the checkpoint that it is from")

    own, fitting, left_out = net.state_dict(), {}, {}
    other_classes = class_names and their_classes and class_names != their_classes
    for name, tensor in rename(net, state).items():
        fitted = _fit(net, tensor, own[name]) if name in own else tensor
        if fitted is None:
            left_out[name] = f"{name} {tuple(tensor.shape)}, here {tuple(own[name].shape)}"
        elif other_classes and name.startswith("head."):
            left_out[name] = f"{name} is for other classes"
        else:
            fitting[name] = fitted
    loaded = [name for name in own if name in fitting]
    body = [name for name, tensor in own.items() if tensor.ndim > 1 and not name.startswith("head.")]
    if not fitting.keys() & body:  # norms, counters and heads of one width fit unrelated networks
        theirs, ours = (", ".join(list(names)[:3]) or "no tensors" for names in (state, body))
        raise UserError(
            f"model.weights: nothing in {weights} fits {type(net).__name__}, which has {ours}; it holds {theirs}"
        )
    for name in loaded:
        if not fitting[name].isfinite().all():
            raise UserError(f"model.weights: {weights} holds NaN or infinite values in {name}; it cannot be used")
    result = net.load_state_dict(fitting, strict=False)
    missing = [name for name in result.missing_keys if name not in left_out]
    return LoadReport(source.name, loaded, list(left_out.values()), missing, result.unexpected_keys, mean, std)


def rename(net: nn.Module, state: State) -> State:
    """The tensors of a file under the network's names; those that the network does not have keep theirs.

    Names may have anything before them, such as module. or model.net.; the prefix that makes most of them known is
    removed. For a TorchvisionModel or TimmModel they may also be those of the library's own network.
    """
    library = {name: name for name in net.state_dict()}
    if isinstance(net, TorchvisionModel | TimmModel):
        library = {name: re.sub(r"^head\.", f"{net.head_name}.", name).removeprefix("backbone.") for name in library}
    keys = [key.replace("_orig_mod.", "") for key in state]  # torch.compile's
    for old, new in OLD_NAMES if isinstance(net, TorchvisionModel) else ():
        keys = [re.sub(old, new, key) for key in keys]
    prefixes = [key.removesuffix(name) for name in (*library, *library.values()) for key in keys if key.endswith(name)]
    prefix = mode(prefixes or [""])
    keys = [key.removeprefix(prefix) for key in keys]
    state = {library.get(key, key): tensor for key, tensor in zip(keys, state.values(), strict=True)}
    if isinstance(net, TimmModel):  # its own loader translates old names, and resizes position embeddings
        with suppress(Exception):  # no such function, or it fails on files that are not like the published ones
            state = sys.modules[type(net.backbone).__module__].checkpoint_filter_fn(state, net.backbone)
    ours = {theirs: name for name, theirs in library.items()}
    return {ours.get(key, key): tensor for key, tensor in state.items()}


def _read(path: Path) -> dict:
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content if isinstance(content, dict) else {}
    except ImportError as error:
        raise UserError(f"model.weights: {path} needs the safetensors library; run pip install safetensors") from error
    except Exception as error:  # torch has a different one for each kind of damage
        raise UserError(
            f"model.weights: {path} cannot be read: it is damaged, or holds more than a state dict: "
            "write it anew with torch.save(model.state_dict(), ...)"
        ) from error


def _fit(net: nn.Module, tensor: Tensor, target: Tensor) -> Tensor | None:
    """The tensor in the shape of the target, None where it does not fit."""
    shape = target.shape
    if tensor.shape == shape:
        return tensor
    images = tensor.ndim == 4 and shape[1] <= 4  # that the layer reads, of one channel or three in the file
    if images and tensor.shape in [(shape[0], channels, *shape[2:]) for channels in (1, 3)]:
        return to_channels(tensor, shape[1])
    vit, name = getattr(net, "backbone", None), "encoder.pos_embedding"
    if isinstance(vit, VisionTransformer) and tensor.ndim == 3 and tensor.shape[2:] == shape[2:]:
        return interpolate_embeddings(vit.image_size, vit.patch_size, {name: tensor.float()})[name]
    return None
