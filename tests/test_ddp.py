"""Two processes on the CPU: every image counted once, and the figures of one process."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import DIGITS, ROOT, SMALL, make_folder
from PIL import Image

DDP = ["--trainer", str(ROOT / "configs/trainer/ddp.yaml"), "--trainer.accelerator", "cpu", "--trainer.devices", "2"]


def launch(*arguments: str) -> str:
    """A command in processes of its own, as a user starts it; DDP starts the second one itself."""
    # An earlier test in this process may have left the address of its own group of processes.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MASTER_", "LOCAL_", "NODE_", "WORLD_"))
    }
    environment = {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "project", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def metrics(run: Path, prefix: str) -> dict[str, float]:
    found = json.loads((run / "metrics.json").read_text())
    return {name: value for name, value in found.items() if name.startswith(prefix)}


def assert_close(one: dict[str, float], other: dict[str, float]) -> None:
    assert one.keys() == other.keys()
    assert all(abs(one[name] - other[name]) < 1e-5 for name in one), (one, other)


@pytest.mark.slow
def test_fit_in_two_processes_writes_one_run(workdir) -> None:
    text = launch("fit", *DIGITS, *SMALL, *DDP, "--trainer.max_epochs", "2")
    assert text.count("Validation accuracy") == 1 and "device     2 x cpu" in text
    run = workdir / "runs/digits/version_0"
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    # One process, validating the weights that two have trained, finds the same figures: no image was counted twice.
    two = metrics(run, "val/")
    launch("validate", "--ckpt_path", "best")
    from lightning.pytorch import Trainer

    from project.classifier import ImageClassifier
    from project.data import Digits, ImageDataModule

    model = ImageClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt")
    data = ImageDataModule(source=Digits, image_size=8, channels=1)
    (one,) = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).validate(model, data, verbose=False)
    assert_close({name: float(value) for name, value in one.items()}, two)


FLAT = """
from torch import nn
class Flat(nn.Sequential):  # without a norm, whose statistics would be those of a rank
    def __init__(self, in_channels, outputs, image_size):
        super().__init__(nn.Flatten(), nn.Linear(in_channels * image_size**2, outputs))
"""


@pytest.mark.slow
def test_a_step_is_the_mean_over_the_images_of_all_ranks(workdir) -> None:
    """Two processes with batches of 7 train as one does with batches of 14: weights, smoothing, accumulation."""
    (workdir / "own_flat.py").write_text(FLAT)
    root = make_folder(workdir / "images", {"blue": 40, "red": 10})  # 32 to train on: of a rank 7, 7 and 2
    options = ["--data.root", root, "--data.image_size=8", "--model.net=own_flat.Flat", "--trainer.max_epochs=2"]
    options += ["--model.optimizer=torch.optim.SGD", "--model.optimizer.momentum=0.9", "--model.lr=0.01"]
    options += ["--model.task.class_weights=balanced", "--model.task.label_smoothing=0.1"]
    options += ["--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=100"]
    launch("fit", *options, "--data.batch_size=14")
    launch("fit", *options, "--data.batch_size=7", *DDP)
    one, two = (
        torch.load(workdir / f"runs/fit/version_{i}/checkpoints/last.ckpt", weights_only=True) for i in range(2)
    )
    assert one["global_step"] == two["global_step"] == 4
    for name, value in one["state_dict"].items():
        if name.startswith("net."):
            assert torch.allclose(value, two["state_dict"][name], atol=1e-6), name
    first, second = (metrics(workdir / f"runs/fit/version_{i}", "train/loss") for i in range(2))
    assert_close(first, second)


@pytest.mark.slow
def test_test_and_predict_count_each_image_once(trained, cli, workdir) -> None:
    from sklearn.datasets import load_digits

    assert cli("test", "--ckpt_path", "best").code == 0
    one = metrics(trained, "test/")
    launch("test", "--ckpt_path", "best", *DDP)  # 359 images: one rank has 180, the other 179
    assert_close(one, metrics(trained, "test/"))

    (workdir / "images").mkdir()
    for i, image in enumerate(load_digits().images[:9]):
        Image.fromarray((image * 15.9).astype("uint8")).save(workdir / f"images/{i}.png")
    (workdir / "images/broken.png").write_bytes(b"")
    assert cli("predict", "--ckpt_path", "best", "--data.root", "images", "--out", "one.csv").code == 0
    text = launch("predict", "--ckpt_path", "best", "--data.root", "images", "--out", "two.csv", *DDP)
    assert text.count("broken.png") == 1
    single, double = (list(csv.DictReader((workdir / name).open())) for name in ("one.csv", "two.csv"))
    assert [row["path"] for row in double] == [f"{i}.png" for i in range(9)]
    for a, b in zip(single, double, strict=True):
        assert a["class"] == b["class"] and abs(float(a["probability"]) - float(b["probability"])) < 1e-4


@pytest.mark.slow
def test_filters_of_the_images_are_the_same_on_every_rank(workdir) -> None:
    """The network that prepares itself, with test-time flips, in two processes and in one."""
    root = make_folder(workdir / "images", {"blue": 40, "red": 10})
    part = ["--config", ROOT / "configs/folder.yaml", "--model", ROOT / "configs/model/fastnet.yaml"]
    options = [*part, "--data.root", root, "--data.image_size=10", "--model.net.widths=[8,8]", "--model.tta=flip"]
    options += ["--trainer.max_epochs=1"]
    launch("fit", *options, "--data.batch_size=8")
    launch("fit", *options, "--data.batch_size=4", *DDP)
    one, two = (
        torch.load(workdir / f"runs/folder/version_{i}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for i in range(2)
    )
    assert torch.equal(one["net.stem.0.weight"], two["net.stem.0.weight"])
    assert not torch.equal(one["net.stem.0.bias"], two["net.stem.0.bias"])  # whose norms see other batches
    two_processes = metrics(workdir / "runs/folder/version_1", "val/")
    launch("validate", "--ckpt_path", "runs/folder/version_1/checkpoints/last.ckpt")
    assert_close(metrics(workdir / "runs/folder/version_1", "val/"), two_processes)
