"""Published weights of torchvision and timm: by name, from the local cache or the network."""

import difflib
import socket
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn
from torchvision.models import get_model_weights

from project.errors import UserError
from project.nets.backbone import TimmModel, TorchvisionModel

PATIENCE = 10  # seconds without an answer after which a download is given up
CANNOT = "is not in the cache and cannot be downloaded"

Statistics = list[float] | None  # of each channel, in [0, 1]


def published(net: nn.Module, name: str) -> tuple[str, Path, Statistics, Statistics, list[str]]:
    """Full name, file, mean, std and class names of published weights of the network, downloaded unless they are in the cache.

    Raises:
        UserError: there are none, or they cannot be downloaded.
    """
    if isinstance(net, TorchvisionModel):
        known = get_model_weights(net.name)
        weights = known.__members__.get(name.removeprefix(f"{known.__name__}."))
        if weights is None:
            raise UserError(_unknown(name, list(known.__members__), net.name))
        mean, std = weights.transforms().mean, weights.transforms().std
        if (
            getattr(net.backbone, "transform_input", None) is False
        ):  # GoogLeNet, Inception: torchvision's go over to this inside
            mean, std = [0.5] * 3, [0.5] * 3
        return str(weights), _download(weights.url), list(mean), list(std), list(weights.meta.get("categories", []))
    if not isinstance(net, TimmModel):
        where = "published weights exist for TorchvisionModel and TimmModel only"
        raise UserError(f"model.weights: there is no file {name!r}, and {where}; give the path of a file")
    import timm

    arch, own_tag = net.backbone.pretrained_cfg["architecture"], net.backbone.pretrained_cfg.get("tag") or ""
    tags = [tag for model, _, tag in (full.partition(".") for full in timm.list_pretrained()) if model == arch]
    tag = own_tag if name == "DEFAULT" else name.removeprefix(f"{arch}.")
    if tag not in tags:
        raise UserError(_unknown(name, [*["DEFAULT"] * (own_tag in tags), *tags], arch))
    full = f"{arch}.{tag}" if tag else arch
    config = timm.get_pretrained_cfg(full)
    path = _from_hub(full, config) if config.hf_hub_id else _download(config.url)
    return full, path, list(config.mean), list(config.std), []  # timm does not say its classes


def _unknown(name: str, names: list[str], network: str) -> str:
    known = {option.lower(): option for option in names}
    close = difflib.get_close_matches(name.lower(), known, n=1)
    near = f"did you mean {known[close[0]]}? There" if close else "there"
    return f"model.weights: {network} has no published weights {name!r}; {near} are {', '.join(names) or 'none'}"


def _download(url: str) -> Path:
    """A file in torch's own cache, its hash checked as it comes."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    digest, before = torch.hub.HASH_REGEX.search(path.name), socket.getdefaulttimeout()
    if path.exists():
        return path
    socket.setdefaulttimeout(PATIENCE)  # torch sets none, and a firewall that swallows packets would cost minutes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=False)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another hash than in the name
        mend = f"fetch {url} on another machine and put it at {path}"
        raise UserError(f"model.weights: {path.name} {CANNOT} ({_reason(error)}); {mend}") from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def _from_hub(full: str, config: Any) -> Path:
    """A file in the hub's own cache. Asked at once for a download, its library retries for 46 s where there is no network."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import EntryNotFoundError

    repo, _, revision = config.hf_hub_id.partition("@")
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    files = [{"repo_id": repo, "filename": name, "revision": revision or None} for name in names]
    for file in files:
        try:
            return Path(hf_hub_download(**file, local_files_only=True))
        except EntryNotFoundError:
            continue
    reason = ""
    for file in files:
        try:
            get_hf_file_metadata(hf_hub_url(**file), timeout=PATIENCE)  # one request without retries
            return Path(hf_hub_download(**file))
        except Exception as error:  # of the library or of its HTTP client, which changes with its version
            reason = reason or _reason(error)
    mend = f"fetch {names[0]} of {config.hf_hub_id} from the hub on another machine and give its path as model.weights"
    raise UserError(f"model.weights: {full} {CANNOT} ({reason}); {mend}")


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
