"""Weights to start from: published ones by name, a state dict, a checkpoint of ours. What fits is loaded, all is reported."""

import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from project.errors import UserError
from project.nets.backbone import TimmModel, TorchvisionModel
from project.nets.published import Statistics, published

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")
ENTRIES = ("state_dict", "model", "model_state_dict", "model_ema", "net")  # where training scripts put the state dict
PREFIXES = ("module.", "model.", "net.", "backbone.")  # what wrappers put before every name
OLD_NAMES = (  # in torchvision's published DenseNets and vision transformers, whose classes translate them as they load
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\bmlp\.linear_1\."), "mlp.0."),
    (re.compile(r"\bmlp\.linear_2\."), "mlp.3."),
)

Mapping = dict[str, tuple[str, Tensor]]  # name in the network -> (name in the file, tensor)


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor, by its name in the network; in `unexpected`, by its name in the file."""

    source: str
    loaded: list[str]  # with those adapted
    missing: list[str]  # not in the file
    unexpected: list[str]  # not in the network
    other_shape: list[
        tuple[str, tuple[int, ...], tuple[int, ...]]
    ]  # name, shape in the file, in the network; not loaded
    adapted: list[str]  # first convolution made to fit other channels, position embeddings to another image size
    mean: Statistics  # the normalisation that belongs to the weights, where it is known
    std: Statistics
    other_classes: list[str] = field(
        default_factory=list
    )  # the head, where it would fit but is for other classes; not loaded

    def lines(self, limit: int = 8) -> list[str]:
        """Text for the terminal: a line for each kind there is, at most `limit` names in it, a whole module written once."""
        reshaped = [name for name, *_ in self.other_shape]
        around = [
            f"{module}." for module in _modules(next(iter(self.unexpected), ""))
        ]  # the file's prefixes say nothing
        shared = [module for module in around if all(name.startswith(module) for name in self.unexpected)]
        kinds = (
            ("loaded", self.loaded, _by_module(self.loaded, [*self.missing, *reshaped])),
            ("adapted", self.adapted, self.adapted),
            ("missing", self.missing, _by_module(self.missing, [*self.loaded, *reshaped])),
            (
                "other shape",
                reshaped,
                [f"{name} {theirs} in the file, {ours} here" for name, theirs, ours in self.other_shape],
            ),
            ("for other classes", self.other_classes, self.other_classes),
            ("unexpected", self.unexpected, _by_module(self.unexpected, shared)),
        )
        text = [f"weights: {self.source}"]
        for kind, names, written in kinds:
            more = f" and {len(written) - limit} more" if len(written) > limit else ""
            text += [f"  {kind} {len(names)}: {', '.join(written[:limit])}{more}"] if names else []
        return text


def fetch_weights(net: nn.Module, weights: str) -> None:
    """Bring published weights into the local cache, for several processes to load. Nothing is done for a file.

    Raises:
        UserError: there are no such weights, or they cannot be downloaded.
    """
    if not _is_path(weights):
        published(net, weights)


def load_weights(net: nn.Module, weights: str, class_names: list[str] | None = None) -> LoadReport:
    """Load what fits by name and shape, in place.

    Names are read with and without the prefixes that wrappers leave, and as those of the library behind a TorchvisionModel or
    TimmModel; the reading that fills most of the network is taken. A weight of two or more dimensions must fit outside the
    head: counters, norm vectors and heads of one width fit networks that have nothing else in common.

    Args:
        net: The network.
        weights: Name of published weights, or path of a state dict (.pt, .pth, .bin, .safetensors) or of a checkpoint.
        class_names: Of the network's outputs. Where the weights say theirs and they are others, the head stays as it is, even if it
            would fit; null takes it whenever it fits.

    Raises:
        UserError: no such name or file, a damaged file, one without tensors, or none that fit. The network is then unchanged.
    """
    mean, std, their_classes = None, None, None
    if _is_path(weights):
        path = Path(weights).expanduser()
        source = str(path)
    else:
        source, path, mean, std, their_classes = published(net, weights)
    content = _read(path)
    states, own = _state_dicts(content)
    if own:
        mean, std = (own[key].flatten().tolist() for key in ("mean", "std"))
        their_classes = content["hyper_parameters"].get("class_names")
    if not states:
        raise UserError(
            f"model.weights: {path} holds no tensors by name; write it by torch.save(model.state_dict(), ...)"
        )

    targets = net.state_dict()  # shares its memory with the network
    entry, mapping, fitting, most = "", {}, {}, -1
    for name, state in states.items():
        for reading in _readings(net, state):
            fits = {key: _fit(net, key, tensor, targets[key]) for key, (_, tensor) in reading.items() if key in targets}
            fits = {key: tensor for key, tensor in fits.items() if tensor is not None}
            if len(fits) > most:  # the first of several that are as good
                entry, mapping, fitting, most = name, reading, fits, len(fits)
    other = class_names is not None and their_classes is not None and list(their_classes) != list(class_names)
    other_classes = [key for key in fitting if key.startswith("head.")] if other else []
    for key in other_classes:
        del fitting[key]
    _check(net, fitting, states[entry], source)
    with torch.no_grad():
        for key, tensor in fitting.items():
            targets[key].copy_(tensor)  # in place: keeps dtype, memory format and requires_grad

    before = {key: states[entry][origin].shape for key, (origin, _) in mapping.items() if origin in states[entry]}
    loaded = [key for key in targets if key in fitting]
    differing = [key for key in targets if key in mapping and key not in fitting and key not in other_classes]
    return LoadReport(
        source=f"{source}, its entry {entry!r}" if entry else source,
        loaded=loaded,
        missing=[key for key in targets if key not in mapping],
        unexpected=[origin for key, (origin, _) in mapping.items() if key not in targets],
        other_shape=[(key, tuple(mapping[key][1].shape), tuple(targets[key].shape)) for key in differing],
        other_classes=other_classes,
        adapted=[
            key for key in loaded if len(before.get(key, ())) == targets[key].ndim and before[key] != targets[key].shape
        ],
        mean=mean,
        std=std,
    )


def _is_path(weights: str) -> bool:
    return (
        weights.lower().endswith(SUFFIXES)
        or "/" in weights
        or os.sep in weights
        or Path(weights).expanduser().is_file()
    )


def _read(path: Path) -> Any:
    """The content of a file, its tensors left on disk where the format allows it."""
    if not path.is_file():
        raise UserError(f"model.weights: {path} {'is a folder, not a file' if path.is_dir() else 'does not exist'}")
    try:
        if path.suffix.lower() != ".safetensors":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        from safetensors import safe_open
        from safetensors.torch import load_file

        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("image_classifier", "{}"))  # of `python -m project export`
        if any(fold["into"] for fold in about.get("folds", ())):
            raise UserError(
                f"model.weights: the batch norms of {path} are folded, so it cannot be trained on; give the checkpoint"
            )
        return load_file(path)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"model.weights: {path} needs the safetensors library; run pip install safetensors") from error
    except Exception as error:  # torch has a different one for each kind of damage
        reason = "cannot be read; it is damaged, or no file of weights"
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(
            error
        ):  # a class that the file would have to import
            reason = "holds objects that need code; save the state dict alone: torch.save(model.state_dict(), ...)"
        elif isinstance(error, PermissionError):
            reason = f"cannot be read: {error.strerror}"
        raise UserError(f"model.weights: {path} {reason}") from error


def _state_dicts(content: Any) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The state dicts in a file by their entry, "" for the file itself; and the whole state if it is a checkpoint of ours."""
    if not isinstance(content, dict):
        return {}, {}
    found = {entry: _tensors(content.get(entry) if entry else content) for entry in ("", *ENTRIES)}
    state = found["state_dict"]
    net = {key: tensor for key, tensor in state.items() if key.startswith("net.")}
    if net and "hyper_parameters" in content and {"mean", "std"} <= state.keys():
        return {"": net}, state  # without the metrics and the loss's weights beside it
    return {entry: tensors for entry, tensors in found.items() if tensors}, {}


def _tensors(content: Any) -> dict[str, Tensor]:
    items = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}


def _readings(net: nn.Module, state: dict[str, Tensor]) -> Iterator[Mapping]:
    """Every sensible way to read the names of a file as those of the network, the plainest first."""
    stripped = [
        {key.replace("_orig_mod.", ""): (key, tensor) for key, tensor in state.items()}
    ]  # torch.compile's, anywhere
    seen = []
    for mapping in stripped:  # grows as it goes
        if mapping.keys() in seen:
            continue
        seen.append(mapping.keys())
        for reading in (mapping, _from_library(net, mapping)):
            yield _timm_filtered(net, reading)
            yield reading
        for prefix in PREFIXES:
            rest = {name: value for name, value in mapping.items() if not name.startswith(prefix)}
            if len(rest) < len(mapping):
                inside = {
                    name.removeprefix(prefix): value for name, value in mapping.items() if name.startswith(prefix)
                }
                stripped.append(rest | inside)


def _from_library(net: nn.Module, mapping: Mapping) -> Mapping:
    """From the names of torchvision or timm to those of TorchvisionModel or TimmModel."""
    if isinstance(net, TorchvisionModel):
        head, old_names = net.head_name, OLD_NAMES
    elif isinstance(net, TimmModel):
        head, old_names = (
            net.backbone.pretrained_cfg.get("classifier"),
            (),
        )  # a tuple for two heads, which do not fit our one
    else:
        return {}
    ours = {}
    for name, (origin, tensor) in mapping.items():
        for old, new in old_names:
            name = old.sub(new, name)
        if isinstance(head, str) and name.startswith(f"{head}."):
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor  # (out, in, 1, 1) -> (out, in): SqueezeNet
            ours[f"head{name.removeprefix(head)}"] = (origin, tensor)
        else:
            ours[f"backbone.{name}"] = (origin, tensor)
    return ours


def _timm_filtered(net: nn.Module, mapping: Mapping) -> Mapping:
    """What timm's own loader makes of a file: old names translated, position embeddings resized to the network's image size."""
    if not isinstance(net, TimmModel):
        return {}
    body = {name.removeprefix("backbone."): value for name, value in mapping.items() if name.startswith("backbone.")}
    rest = {name: value for name, value in mapping.items() if not name.startswith("backbone.")}
    try:
        module = sys.modules[type(net.backbone).__module__]
        converted = module.checkpoint_filter_fn({name: tensor for name, (_, tensor) in body.items()}, net.backbone)
    except Exception:  # no such function, or it is made for published files and fails in its own way on this one
        return {}
    return {
        f"backbone.{name}": (body.get(name, (name,))[0], tensor) for name, tensor in _tensors(converted).items()
    } | rest


def _fit(net: nn.Module, name: str, tensor: Tensor, target: Tensor) -> Tensor | None:
    """The tensor if it fits, made to fit if it is the first convolution or torchvision's position embedding."""
    shape, wanted = tuple(tensor.shape), tuple(target.shape)
    if shape == wanted:
        return tensor
    if len(shape) == len(wanted) == 4 and shape == (wanted[0], 3, *wanted[2:]):
        channels = wanted[1]  # by the rule of backbone.adapt_first_conv
        return (
            tensor.sum(1, keepdim=True)
            if channels == 1
            else tensor[:, [i % 3 for i in range(channels)]] * (3 / channels)
        )
    if name.endswith("encoder.pos_embedding") and len(shape) == 3 and shape[2] == wanted[2]:
        vit = net.get_submodule(name.removesuffix("encoder.pos_embedding").rstrip("."))
        if isinstance(vit, VisionTransformer) and int((shape[1] - 1) ** 0.5) ** 2 == shape[1] - 1:
            state = {"encoder.pos_embedding": tensor.float()}
            return interpolate_embeddings(vit.image_size, vit.patch_size, state)["encoder.pos_embedding"]
    return None


def _check(net: nn.Module, fitting: dict[str, Tensor], state: dict[str, Tensor], source: str) -> None:
    """Refuse weights that would do nothing, or harm."""
    weights = [name for name, parameter in net.named_parameters() if parameter.ndim > 1]
    body = [name for name in weights if not name.startswith("head.")] or weights
    if not fitting.keys() & set(body):
        theirs, ours = (", ".join(list(names)[:3]) for names in (state, body))
        raise UserError(
            f"model.weights: nothing in {source} fits {type(net).__name__}: it holds {theirs}, the network {ours}"
        )
    for name, _ in net.named_parameters():
        if name in fitting and not fitting[name].isfinite().all():
            raise UserError(f"model.weights: {source} holds NaN or infinite values in {name}; it cannot be used")


def _modules(name: str) -> list[str]:
    """The modules around a tensor, the outermost first: a.b.weight -> a, a.b."""
    return [name[: dot.start()] for dot in re.finditer(r"\.", name)]


def _by_module(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """The names in their order; a module that none of the others is in stands for its tensors, with their number."""
    mixed = {module for name in others for module in _modules(name)}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(next((module for module in _modules(name) if module not in mixed), name), []).append(name)
    return [f"{module}.* ({len(inside)})" if len(inside) > 1 else inside[0] for module, inside in groups.items()]
