"""Where weights are: a file, or published ones of torchvision and timm, in the local cache or on the internet."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model_weights

from project.errors import UserError
from project.nets.backbone import TimmModel, TorchvisionModel

PATIENCE = 10  # seconds without an answer after which a download is given up


@dataclass(frozen=True)
class Source:
    """A file of weights, and what is known of them."""

    name: str
    path: Path
    url: str = ""
    mean: Sequence[float] | None = None  # of each channel, in [0, 1]
    std: Sequence[float] | None = None
    class_names: list[str] | None = None


def fetch_weights(net: nn.Module, weights: str) -> Source:
    """Find weights, and bring published ones into the local cache, in one process for several to load.

    Args:
        net: The network that they are for.
        weights: Path of a file, or name of published weights of this network, with or without the network's own name.

    Raises:
        UserError: there is no such file or name, or the weights cannot be downloaded.
    """
    published = {}
    if isinstance(net, TorchvisionModel):
        published = _torchvision(net)
    elif isinstance(net, TimmModel):
        published = _timm(net)
    source = next((source for tag, source in published.items() if weights in (tag, source.name)), None)
    if source is None:
        source = Source(weights, Path(weights).expanduser())
        if not source.path.is_file():
            known = ", ".join(published) or "none exist for it"
            raise UserError(f"model.weights: no file {weights}; published weights of this network: {known}")
    elif not source.path.exists():
        _download(source)
    return source


def _torchvision(net: TorchvisionModel) -> dict[str, Source]:
    published = {}
    for tag, entry in get_model_weights(net.name).__members__.items():
        mean, std = entry.transforms().mean, entry.transforms().std
        if hasattr(net.backbone, "transform_input"):  # torchvision's GoogLeNet and Inception switch to these inside
            mean = std = [0.5] * 3
        published[tag] = Source(str(entry), _cached(entry.url), entry.url, mean, std, entry.meta.get("categories"))
    return published


def _timm(net: TimmModel) -> dict[str, Source]:
    import timm
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    published, config = {}, net.backbone.pretrained_cfg
    for name in timm.list_pretrained(f"{config['architecture']}.*"):
        known = timm.get_pretrained_cfg(name)
        url, there = known.url, None
        if known.hf_hub_id:
            place = known.hf_hub_id, "model.safetensors"
            url, there = hf_hub_url(*place), try_to_load_from_cache(*place)
        file = Path(there) if isinstance(there, str) else _cached(name + Path(url).suffix)
        tag = name.partition(".")[2]
        published[tag] = Source(name, file, url, known.mean, known.std)  # timm does not say the classes
        if tag == config.get("tag"):
            published["DEFAULT"] = published[tag]
    return published


def _cached(url: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", Path(url).name)


def _download(source: Source) -> None:
    """A file into torch's cache; a hash in its name is checked."""
    digest, before = torch.hub.HASH_REGEX.search(Path(source.url).name), socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # torch sets none, and a firewall that swallows packets would cost minutes
    try:
        source.path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(source.url, str(source.path), digest and digest[1], progress=False)
    except Exception as error:  # of the connection, the disk, or a hash that differs from that in the name
        advice = f"fetch {source.url} on another machine and put it at {source.path}"
        reason = " ".join(str(error).split())
        raise UserError(f"model.weights: {source.name} cannot be downloaded ({reason}); {advice}") from error
    finally:
        socket.setdefaulttimeout(before)
