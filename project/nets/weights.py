"""Weights to start from: published ones, a state dict or a checkpoint. What fits is loaded, the rest is reported."""

import re
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from project.errors import UserError
from project.nets.backbone import TimmModel, TorchvisionModel, to_channels
from project.nets.published import fetch_weights

ENTRIES = ("state_dict", "model", "model_state_dict", "model_ema", "net")  # where training scripts put the state dict
OLD_NAMES = (  # in the published DenseNets and vision transformers of torchvision
    (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),
    (r"\bmlp\.linear_1\.", "mlp.0."),
    (r"\bmlp\.linear_2\.", "mlp.3."),
)

State = dict[str, Tensor]


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor, by its name in the network; of those unexpected, by their name in the file."""

    source: str
    loaded: list[str]  # with those adapted
    adapted: list[str]  # first convolution to other channels, torchvision's position embeddings to another image size
    missing: list[str]  # not in the file
    other_shape: list[str]  # not loaded; each with the shapes in the file and in the network
    other_classes: list[str]  # the head, where it would fit but is for other classes; not loaded
    unexpected: list[str]  # not in the network
    mean: list[float] | None  # the normalisation that belongs to the weights, where it is known
    std: list[float] | None

    def lines(self, limit: int = 8) -> list[str]:
        """Text for the terminal: how many tensors were loaded, and up to `limit` names of each other kind."""
        total = len(self.loaded) + len(self.missing) + len(self.other_shape) + len(self.other_classes)
        text = [f"weights: {self.source}", f"  loaded {len(self.loaded)} of {total} tensors"]
        for kind in ("adapted", "missing", "other_shape", "other_classes", "unexpected"):
            names = getattr(self, kind)
            more = f" and {len(names) - limit} more" if len(names) > limit else ""
            text += [f"  {kind.replace('_', ' ')} {len(names)}: {', '.join(names[:limit])}{more}"] if names else []
        return text


def load_weights(net: nn.Module, weights: str, class_names: list[str] | None = None) -> LoadReport:
    """Load what fits by name and shape, in place.

    Args:
        net: The network.
        weights: Name of published weights, or path of a state dict (.pt, .pth, .bin, .safetensors) or a checkpoint.
        class_names: Of the network's outputs. A head for other classes is left out even where it would fit; None
            takes it.

    Raises:
        UserError: no such name or file, a damaged file, one without tensors, or none that fit outside the head. The
            network is then unchanged.
    """
    source = fetch_weights(net, weights)
    mean, std, their_classes = source.mean, source.std, source.class_names
    content = _read(source.path)
    if "normalise.mean" in (whole := _tensors(content.get("state_dict"))):  # a checkpoint of ours
        mean, std = (whole[f"normalise.{key}"].flatten().tolist() for key in ("mean", "std"))
        their_classes = content["hyper_parameters"]["class_names"]
        content = {key: tensor for key, tensor in whole.items() if key.startswith("net.")}  # without metrics and loss
    state = next((found for entry in ENTRIES if (found := _tensors(content.get(entry)))), _tensors(content))
    if {"scale", "shift"} <= state.keys():  # of project.nets.deployable
        raise UserError(f"model.weights: the batch norms of {weights} are folded; give the checkpoint that it is from")

    given, targets = rename(net, state), net.state_dict()  # which shares its memory with the network
    pairs = {name: (given[name], target) for name, target in targets.items() if name in given}
    fitting = {name: _fit(net, tensor, target) for name, (tensor, target) in pairs.items()}
    fitting = {name: tensor for name, tensor in fitting.items() if tensor is not None}
    other = None not in (class_names, their_classes) and list(class_names) != list(their_classes)
    other_classes = [name for name in fitting if other and name.startswith("head.")]
    loaded = [name for name in fitting if name not in other_classes]
    _check(net, {name: fitting[name] for name in loaded}, state, weights)
    with torch.no_grad():
        for name in loaded:
            targets[name].copy_(fitting[name])  # in place: keeps dtype, memory format and requires_grad
    shapes = {name: [tuple(tensor.shape) for tensor in pair] for name, pair in pairs.items()}
    return LoadReport(
        source=source.name,
        loaded=loaded,
        adapted=[name for name in loaded if shapes[name][0] != shapes[name][1]],
        missing=[name for name in targets if name not in given],
        other_shape=[f"{name} {shapes[name][0]}, here {shapes[name][1]}" for name in pairs if name not in fitting],
        other_classes=other_classes,
        unexpected=[name for name in given if name not in targets],
        mean=mean,
        std=std,
    )


def rename(net: nn.Module, state: State) -> State:
    """The tensors of a file under the network's names; those that the network does not have keep theirs.

    Names may have anything before them, such as module. or model.net.; the prefix that makes most of them known is
    removed. For a TorchvisionModel or TimmModel they may also be those of the library's own network.
    """
    library = {name: _library_name(net, name) for name in net.state_dict()}
    known = {*library, *library.values()}
    renamed = {}
    for key, tensor in state.items():
        key = key.replace("_orig_mod.", "")  # torch.compile's
        for old, new in OLD_NAMES if isinstance(net, TorchvisionModel) else ():
            key = re.sub(old, new, key)
        renamed[key] = tensor
    starts = [(key, start) for key in renamed for start in (0, *(dot.end() for dot in re.finditer(r"\.", key)))]
    prefixes = Counter(key[:start] for key, start in starts if key[start:] in known)
    prefix = max(prefixes, key=prefixes.__getitem__, default="")  # of equals the first, which is the shortest
    renamed = {key.removeprefix(prefix): tensor for key, tensor in renamed.items()}
    renamed = {library.get(key, key): tensor for key, tensor in renamed.items()}
    if isinstance(net, TimmModel):  # its own loader translates old names, and resizes position embeddings
        with suppress(Exception):  # no such function, or it fails on files that are not like the published ones
            renamed = sys.modules[type(net.backbone).__module__].checkpoint_filter_fn(renamed, net.backbone)
    ours = {theirs: name for name, theirs in library.items()}
    return {ours.get(key, key): tensor for key, tensor in renamed.items()}


def _library_name(net: nn.Module, name: str) -> str:
    if not isinstance(net, TorchvisionModel | TimmModel):
        return name
    if net.head_name and name.startswith("head."):
        return f"{net.head_name}{name.removeprefix('head')}"
    return name.removeprefix("backbone.")


def _read(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"model.weights: there is no file {path}")
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
            f"model.weights: {path} cannot be read: it is damaged, or holds objects that need code; save the state dict"
            " alone: torch.save(model.state_dict(), ...)"
        ) from error


def _tensors(content: object) -> State:
    items = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}


def _fit(net: nn.Module, tensor: Tensor, target: Tensor) -> Tensor | None:
    """The tensor in the shape of the target, None where it does not fit."""
    shape = target.shape
    if tensor.shape == shape:
        return tensor
    if tensor.ndim == 4 and tensor.flatten(1).shape == shape:  # SqueezeNet's head is a 1x1 convolution
        return tensor.flatten(1)
    if tensor.ndim == 4 and target.ndim == 4 and tensor.shape == (shape[0], 3, *shape[2:]):
        return to_channels(tensor, shape[1])
    vit, name = getattr(net, "backbone", None), "encoder.pos_embedding"
    if isinstance(vit, VisionTransformer) and tensor.ndim == 3 and tensor.shape[2:] == shape[2:]:
        return interpolate_embeddings(vit.image_size, vit.patch_size, {name: tensor.float()})[name]
    return None


def _check(net: nn.Module, loaded: State, state: State, source: str) -> None:
    """Refuse weights that would do nothing, or harm. Norms, counters and heads of one width fit unrelated networks."""
    parameters = dict(net.named_parameters())
    body = [name for name, parameter in parameters.items() if parameter.ndim > 1 and not name.startswith("head.")]
    if not loaded.keys() & set(body):
        theirs, ours = (", ".join(list(names)[:3]) or "no tensors" for names in (state, body))
        raise UserError(
            f"model.weights: nothing in {source} fits {type(net).__name__}: it holds {theirs}, the network {ours}"
        )
    for name in parameters.keys() & loaded.keys():
        if not loaded[name].isfinite().all():
            raise UserError(f"model.weights: {source} holds NaN or infinite values in {name}; it cannot be used")
