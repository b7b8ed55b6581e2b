"""Same seed, same weights: with any number of workers, and for a run that was stopped and resumed."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from conftest import DIGITS, ROOT, SMALL
from PIL import Image

SMALL_FIT = ["fit", *DIGITS, *SMALL, "--model.net.init_args.dropout", "0.2", "--trainer.max_epochs", "3"]
ONE_EPOCH = ["--trainer.max_epochs", "1"]
EPOCH = '{"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}'
STEP = '{"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.97}}'
SCHEDULES = {
    "one cycle": [],
    "by epoch": ["--model.schedule", EPOCH],
    "in 16 bits": ["--trainer.precision", "bf16-mixed"],
    "by step": ["--model.schedule", STEP, "--model.schedule_interval", "step"],
    "with Muon": ["--model.optimizer", "project.optim.Muon"],
    "with workers": ["--data.num_workers", "2", "--data.cache", "none"],
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "runs/digits/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def fit(cli, folder: Path, *arguments: str) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    result = cli(*SMALL_FIT, *arguments)
    assert result.code == 0, result.err
    return weights(folder)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_workers_and_cache_do_not_matter(cli, workdir, precision) -> None:
    options = [*ONE_EPOCH, "--trainer.precision", precision]
    base = fit(cli, workdir / "a", *options)
    assert_equal(base, fit(cli, workdir / "b", *options, "--data.num_workers", "2", "--data.cache", "none"))
    other = fit(cli, workdir / "c", *options, "--seed_everything", "1")
    assert any(not torch.equal(base[name], other[name]) for name in base)


@pytest.mark.slow
@pytest.mark.parametrize("area", ["null", "[0.3,1]"])
def test_of_files_no_cache_matters_nor_a_full_disk(cli, workdir, monkeypatch, area) -> None:
    """Bit-identical weights, with random crops too: photographs are reduced before they are cropped, in every mode."""
    images = np.random.default_rng(0).integers(0, 256, (40, 70, 90, 3), dtype=np.uint8)
    for i, pixels in enumerate(images):
        (workdir / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(workdir / "images" / "ab"[i % 2] / f"{i}.{('png', 'jpg')[i // 2 % 2]}")
    source = [
        "--data.source",
        "project.data.ImageFolder",
        "--data.root",
        str(workdir / "images"),
        "--data.channels",
        "3",
    ]
    options = [*ONE_EPOCH, *source, "--data.image_size", "16", "--data.random_resized_crop", area]
    base = fit(cli, workdir / "none", *options, "--data.cache", "none", "--data.num_workers", "0")
    for cache, workers in (("memory", 0), ("disk", 0), ("disk", 2), ("none", 2)):
        where = workdir / f"{cache}{workers}"
        assert_equal(base, fit(cli, where, *options, "--data.cache", cache, "--data.num_workers", str(workers)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(workdir / "other"))
    monkeypatch.setattr("project.data.disk.SPARE", 2**60)
    os.chdir(workdir)
    result = cli(*SMALL_FIT, *options, "--data.cache", "disk")
    lines = [line for line in result.out.splitlines() if line.startswith("cache")]
    assert result.code == 0 and len(lines) == 1 and "GB would be left free" in lines[0]
    assert_equal(base, weights(workdir))


class SignalAt(L.Callback):
    """Sends this process a signal: before the epoch's first batch, after a batch, or while it validates."""

    def __init__(self, number: int, place: str) -> None:
        self.number, self.place, self.sent = number, place, False

    def at(self, place: str) -> None:
        if place == self.place and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.at(f"epoch {trainer.current_epoch}")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.at(f"epoch {trainer.current_epoch}, batch {batch_idx}")

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.at(f"epoch {trainer.current_epoch}, validation {batch_idx}")


PLACES = ["epoch 1", "epoch 1, batch 0", "epoch 1, batch 7", "epoch 0, batch 17", "epoch 1, validation 1"]


@pytest.mark.parametrize(
    ("schedule", "places"),
    [("one cycle", PLACES[2:3]), *(pytest.param(name, PLACES, marks=pytest.mark.slow) for name in SCHEDULES)],
)
def test_stopped_and_resumed_equals_uninterrupted(cli, workdir, monkeypatch, schedule, places) -> None:
    from project.cli import CLI

    whole = fit(cli, workdir / "whole", *SCHEDULES[schedule])
    real = CLI._instantiate_trainer
    for turn, place in enumerate(places, start=list(SCHEDULES).index(schedule)):
        signals = ((signal.SIGINT, 130), (signal.SIGTERM, 143))
        number, code = signals[turn % 2]  # over the schedules, every place sees both
        parts = workdir / place
        parts.mkdir()
        os.chdir(parts)
        with monkeypatch.context() as patch:
            stop = SignalAt(number, place)
            patch.setattr(
                CLI, "_instantiate_trainer", lambda cli, *given, stop=stop: real(cli, given[0], [stop, *given[1]])
            )
            result = cli(*SMALL_FIT, *SCHEDULES[schedule])
        assert result.code == code, (place, result)
        assert "python -m project fit --ckpt_path last" in result.out
        result = cli("fit", "--ckpt_path", "last")
        assert result.code == 0, result.err
        assert_equal(whole, weights(parts))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals_leave_a_checkpoint(workdir, cli, name, code) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "project", *SMALL_FIT, "--trainer.max_epochs", "50"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    text = ""
    for line in process.stdout:
        text += line
        if re.match("epoch 2/", line):
            process.send_signal(getattr(signal, name))
    assert process.wait() == code, text
    assert "Saved runs/digits/version_0/checkpoints/last.ckpt" in text and "Traceback" not in text
    assert 1 <= torch.load("runs/digits/version_0/checkpoints/last.ckpt", weights_only=True)["epoch"] < 49
    assert cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", "4").code == 0


@pytest.mark.slow
def test_an_error_leaves_a_checkpoint(cli, workdir, monkeypatch) -> None:
    from project.classifier import ImageClassifier

    real = ImageClassifier.training_step

    def fail(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 3:
            raise RuntimeError("out of memory")
        return real(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "training_step", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            cli(*SMALL_FIT)
    assert cli("fit", "--ckpt_path", "last").code == 0
    assert_equal(fit(cli, workdir / "whole"), weights(workdir))
