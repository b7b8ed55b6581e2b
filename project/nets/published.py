"""Where weights are: a file, or published ones of torchvision and timm, in the local cache or on the internet."""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import nn
from torchvision.models import get_model_weights

from project.errors import UserError
from project.nets.backbone import TimmModel, TorchvisionModel

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")
PATIENCE = 10  # seconds without an answer after which a download is given up


@dataclass(frozen=True)
class Source:
    """A file of weights, and what is known of them."""

    name: str
    path: Path
    mean: list[float] | None = None  # of each channel, in [0, 1]
    std: list[float] | None = None
    class_names: list[str] | None = None


def fetch_weights(net: nn.Module, weights: str) -> Source:
    """Find weights, and bring published ones into the local cache, in one process for several to load.

    Args:
        net: The network that they are for.
        weights: Path of a file, or name of published weights.

    Raises:
        UserError: there are no published weights of that name, or they cannot be downloaded.
    """
    path = Path(weights).expanduser()
    if path.suffix.lower() in SUFFIXES or len(path.parts) > 1 or path.is_file():
        return Source(weights, path)
    if isinstance(net, TorchvisionModel):
        return _from_torchvision(net, weights)
    if isinstance(net, TimmModel):
        return _from_timm(net, weights)
    raise UserError(
        f"model.weights: there is no file {weights!r}, and published weights exist for TorchvisionModel and TimmModel"
        " only; give the path of a file"
    )


def _from_torchvision(net: TorchvisionModel, name: str) -> Source:
    known = get_model_weights(net.name)
    weights = known.__members__.get(name.removeprefix(f"{known.__name__}."))
    if weights is None:
        raise _unknown(net.name, name, known.__members__)
    mean, std = weights.transforms().mean, weights.transforms().std
    if hasattr(net.backbone, "transform_input"):  # torchvision's GoogLeNet and Inception switch to these inside
        mean, std = [0.5] * 3, [0.5] * 3
    return Source(str(weights), _download(weights.url), list(mean), list(std), weights.meta.get("categories"))


def _from_timm(net: TimmModel, name: str) -> Source:
    import timm

    architecture, own_tag = net.backbone.pretrained_cfg["architecture"], net.backbone.pretrained_cfg.get("tag")
    tag = own_tag if name == "DEFAULT" else name.removeprefix(f"{architecture}.")
    tags = [full.removeprefix(f"{architecture}.") for full in timm.list_pretrained(f"{architecture}.*")]
    if tag not in tags:
        raise _unknown(architecture, name, tags)
    full = f"{architecture}.{tag}"
    config = timm.get_pretrained_cfg(full)
    path = _from_hub(full, config.hf_hub_id) if config.hf_hub_id else _download(config.url)
    return Source(full, path, list(config.mean), list(config.std))  # timm does not say the classes


def _unknown(network: str, name: str, names: Iterable[str]) -> UserError:
    known = ", ".join(names) or "none"
    return UserError(f"model.weights: {network} has no published weights {name!r}; available are {known}")


def _download(url: str) -> Path:
    """A file in torch's own cache, its hash checked as it arrives."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    if path.exists():
        return path
    digest, before = torch.hub.HASH_REGEX.search(path.name), socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # torch sets none, and a firewall that swallows packets would cost minutes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=False)
    except Exception as error:  # of the connection, the disk, or a hash that differs from that in the name
        raise _unavailable(path.name, error, f"fetch {url} on another machine and put it at {path}") from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def _from_hub(full: str, hub_id: str) -> Path:
    """A file in the hub's own cache."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repo, _, revision = hub_id.partition("@")
    file = {"repo_id": repo, "filename": "model.safetensors", "revision": revision or None}
    if isinstance(path := try_to_load_from_cache(**file), str):
        return Path(path)
    try:
        get_hf_file_metadata(hf_hub_url(**file), timeout=PATIENCE)  # once; offline, hf_hub_download retries for 24 s
        return Path(hf_hub_download(**file))
    except Exception as error:  # of the library or of its HTTP client, which changes with its version
        advice = (
            f"fetch model.safetensors of {hub_id} from the hub on another machine and give its path as model.weights"
        )
        raise _unavailable(full, error, advice) from error


def _unavailable(name: str, error: Exception, advice: str) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return UserError(f"model.weights: {name} is not in the cache and cannot be downloaded ({reason}); {advice}")
