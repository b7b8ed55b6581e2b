"""Every YAML in configs/ runs, and opens by saying what it is for."""

import pickle
import struct
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
import yaml
from conftest import DIGITS, ROOT, make_folder, slow_but

from project.cli import parse

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SPACES = [path for path in CONFIGS if path.parent.name == "search"]  # of searches; tests/tune tries them
TASKS = [path for path in CONFIGS if path.parent.name == "configs"]
ONE_BATCH = ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--data.batch_size", "8"]


def write_cifar(folder: Path, fine: bool, monkeypatch) -> None:
    """The files of CIFAR-10 or CIFAR-100 with a few random images, in the original format."""
    dataset = torchvision.datasets.CIFAR100 if fine else torchvision.datasets.CIFAR10
    random, classes = np.random.default_rng(0), 100 if fine else 10
    base = folder / dataset.base_folder
    base.mkdir(parents=True)
    for name, _ in [*dataset.train_list, *dataset.test_list]:
        labels = list(range(classes)) * 5
        images = random.integers(0, 256, (len(labels), 3 * 32 * 32), dtype=np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": images, "fine_labels" if fine else "labels": labels}))
    names = {"fine_label_names" if fine else "label_names": [f"class {i:02d}" for i in range(classes)]}
    (base / dataset.meta["filename"]).write_bytes(pickle.dumps(names))
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())


def write_mnist(folder: Path, name: str) -> None:
    """The four files of MNIST or Fashion-MNIST with a few random images, in the original format."""
    raw, random = folder / name / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        labels = np.arange(50, dtype=np.uint8) % 10
        images = random.integers(0, 256, (50, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 50, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 50) + labels.tobytes())


def data_for(name: str, workdir: Path, monkeypatch) -> list[str]:
    """Options that point a task to data made for the test."""
    if name in ("folder", "finetune", "feature_extractor"):
        return ["--data.root", str(make_folder(workdir / "images"))]
    if name == "look":  # stands beside a task
        return DIGITS
    if name == "manifest":
        images = make_folder(workdir / "images")
        rows = [f"{path},{path.parent.name}" for path in sorted(images.rglob("*.png"))]
        (workdir / "images.csv").write_text("\n".join(["path,label", *rows]))
        return ["--data.root", str(workdir / "images.csv")]
    if name.startswith("cifar"):
        write_cifar(workdir / "data", name == "cifar100", monkeypatch)
    elif "mnist" in name:
        write_mnist(workdir / "data", {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name])
    return []


def weights_for(name: str, workdir: Path) -> list[str]:
    """Published weights cannot be had in a test: a file like theirs, with random values."""
    if name not in ("finetune", "feature_extractor"):
        return []
    net = torchvision.models.get_model({"finetune": "resnet18", "feature_extractor": "resnet50"}[name])
    torch.save(net.state_dict(), workdir / "published.pth")
    return ["--model.weights", str(workdir / "published.pth")]


FAST = [
    ROOT / f"configs/{name}.yaml"
    for name in ("digits", "folder", "finetune", "model/timm", "data/augment_all", "trainer/cpu")
]


@pytest.mark.parametrize("path", slow_but(TASKS, *FAST), ids=lambda path: path.stem)
def test_task_runs(path, cli, workdir, monkeypatch) -> None:
    options = [*data_for(path.stem, workdir, monkeypatch), *weights_for(path.stem, workdir)]
    result = cli("fit", "--config", path, *ONE_BATCH, *options)
    assert result.code == 0, result.err


@pytest.mark.parametrize("name", ["finetune", "feature_extractor"])
def test_published_weights_that_cannot_be_had(name, cli, workdir, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(workdir / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", Mock(side_effect=URLError("no network")))
    result = cli("fit", "--config", ROOT / "configs" / f"{name}.yaml", "--data.root", make_folder(workdir / "images"))
    assert result.code == 2 and result.err.count("\n") == 1
    assert "cache/hub/checkpoints/resnet" in result.err and "on another machine" in result.err


@pytest.mark.parametrize(
    "path",
    slow_but([path for path in CONFIGS if path not in TASKS + SPACES], *FAST),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_part_runs(path, cli, workdir, monkeypatch) -> None:
    task, options = "folder", []
    if path.parent.name == "data":
        task = "folder" if path.stem == "augment_all" else path.stem
    elif path.parent.name == "model":
        options = ["--data.image_size", "64", *weights_for(path.stem, workdir)]
    elif path.stem == "gpu":  # without a GPU, what the part says besides must still parse and run
        options = ["--trainer.precision", "bf16-mixed"]
    elif path.stem == "ddp":  # tests/test_ddp.py runs it in two processes
        options = ["--trainer.devices", "1"]
    config = ROOT / "configs" / f"{task}.yaml"
    part = [f"--{path.parent.name}", path]
    result = cli("fit", "--config", config, *part, *ONE_BATCH, *data_for(task, workdir, monkeypatch), *options)
    if torch.distributed.is_initialized():  # by the part ddp; later tests are to start without a group
        torch.distributed.destroy_process_group()
    assert result.code == 0, result.err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_header(path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    if path.parent.name in ("configs", "trainer", "search"):
        head = "\n".join(line for line in lines if line.startswith("#"))
        command = "search" if path in SPACES else "fit"
        for word in (f"python -m project {command} --config configs/", "Purpose:", "Hardware:", "Time", "esult"):
            assert word in head, word
    assert all(len(line) <= 120 for line in lines)
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_missing_files_say_where_to_put_them(cli, name) -> None:
    result = cli("fit", "--config", ROOT / "configs" / f"{name}.yaml")
    assert result.code == 2 and "missing or damaged" in result.err and "download true" in result.err


@pytest.mark.parametrize("part", sorted((ROOT / "configs/model").glob("*.yaml")), ids=lambda path: path.stem)
def test_nothing_of_the_recipe_of_a_folder_stays_beside_another(part) -> None:
    both = parse(["--config", str(ROOT / "configs/folder.yaml"), "--model", str(part)])
    assert both["model"] == parse(["--model", str(part)])["model"]
