"""The average of the weights against a loop by hand: what is saved, its decay by the batch, a stop in validation."""

import json
import os
import re
import signal
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from conftest import DIGITS, SMALL, make_folder

LAST = "runs/fit/version_0/checkpoints/last.ckpt"


@pytest.fixture
def few(tmp_path) -> list[str]:
    """Options for three steps an epoch on images of two classes."""
    root = make_folder(tmp_path / "few", {"blue": 25, "red": 25})
    net = ["--model.net", "project.nets.ConvNet", "--model.net.init_args.channels", "[4]", "--data.image_size", "8"]
    return [
        "fit",
        "--data.root",
        str(root),
        "--data.batch_size",
        "12",
        *net,
        "--model.lr",
        "0.05",
        "--trainer.max_epochs",
        "3",
    ]


def ema(*options: str) -> list[str]:
    return ["--trainer.callbacks+=project.run.EMA", *(f"--trainer.callbacks.{option}" for option in options)]


class Watch(L.Callback):
    """Keeps the weights after every step, and sends Ctrl-C in the middle of a validation."""

    def __init__(self, stop_in: int | None = None) -> None:
        self.seen: list[dict[str, np.ndarray]] = []
        self.stop_in = stop_in

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append({name: p.detach().double().numpy().copy() for name, p in pl_module.named_parameters()})

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        if trainer.current_epoch == self.stop_in:
            self.stop_in = None
            os.kill(os.getpid(), signal.SIGINT)


def watched(monkeypatch, cli, watch: Watch, *arguments: str):
    from project.cli import CLI

    real = CLI._instantiate_trainer
    with monkeypatch.context() as patch:
        patch.setattr(
            CLI, "_instantiate_trainer", lambda self, config, callbacks: real(self, config, [watch, *callbacks])
        )
        return cli(*arguments)


@pytest.mark.parametrize(
    ("start", "batch", "keep"),
    [
        (0, [], 0.2),
        (0, ["--model.reference_batch=3", "--model.lr_scaling=linear"], 0.2**4),
        (0, ["--model.reference_batch=24", "--model.lr_scaling=sqrt"], 0.2**0.5),  # (1 + n) / (10 + n) until n = 7
        (4, [], 0.2),
    ],
)
def test_the_average_is_that_of_a_loop(cli, few, monkeypatch, start, batch, keep) -> None:
    watch = Watch()
    result = watched(monkeypatch, cli, watch, *few, *ema("decay=0.2", f"update_starting_at_step={start}"), *batch)
    assert result.code == 0, result.err
    checkpoint = torch.load(LAST, weights_only=True)
    mean = watch.seen[start]
    for n, weights in enumerate(watch.seen[start + 1 :], 1):
        kept = min(keep, (1 + n) / (10 + n))
        mean = {name: kept * mean[name] + (1 - kept) * value for name, value in weights.items()}
    assert len(watch.seen) == 9
    for name, value in mean.items():
        assert np.allclose(checkpoint["state_dict"][name].numpy(), value, atol=1e-6), name
        assert np.allclose(checkpoint["current_model_state"][name].numpy(), watch.seen[-1][name], atol=1e-7)
    assert not np.allclose(
        checkpoint["state_dict"]["net.head.weight"].numpy(), watch.seen[-1]["net.head.weight"], atol=1e-4
    )


@pytest.mark.parametrize(
    "average",
    [
        ["project.run.EMA", "--trainer.callbacks.decay=0.3"],
        pytest.param(["project.run.EMA", "--trainer.callbacks.update_starting_at_step=4"], marks=pytest.mark.slow),
        pytest.param(["lightning.pytorch.callbacks.WeightAveraging"], marks=pytest.mark.slow),
    ],
)
def test_stopped_while_it_validates_and_resumed(cli, few, workdir, monkeypatch, average) -> None:
    options = [*few, "--trainer.callbacks+", *average]
    assert cli(*options).code == 0
    whole = torch.load(LAST, weights_only=True)
    (workdir / "parts").mkdir()
    monkeypatch.chdir(workdir / "parts")
    assert watched(monkeypatch, cli, Watch(stop_in=1), *options).code == 130
    result = cli("fit", "--ckpt_path", "last")
    assert result.code == 0, result.err
    parts = torch.load(LAST, weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(parts[key][name], value) for name, value in whole[key].items())


def test_frozen_weights_do_not_drift(cli, few) -> None:
    result = cli(*few, *ema("decay=0.99"), "--model.freeze", "project.optim.Freeze")
    assert result.code == 0, result.err
    assert "unchanged by their checksums" in result.out


def test_until_it_begins_the_average_is_the_weights(cli, few, workdir, monkeypatch) -> None:
    """What is validated and saved, also before the first step; with weights loaded after Lightning copied the model."""
    assert cli(*few).code == 0
    published = torch.load(LAST, weights_only=True)
    expected = published["callbacks"]["BestAndLast"]["metrics"]["val/loss"]
    losses = []

    class Losses(L.Callback):
        def on_validation_end(self, trainer, pl_module) -> None:
            losses.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))

    load = ["--model.weights", str(workdir / LAST), "--model.lr=1e-12", "--seed_everything=5"]
    steps = [
        "--trainer.accumulate_grad_batches=3",
        "--trainer.val_check_interval=1",
        "--trainer.check_val_every_n_epoch=null",
    ]
    result = watched(monkeypatch, cli, Losses(), *few, *ema("update_starting_at_step=1"), *load, *steps)
    assert result.code == 0, result.err
    # The statistics of the norms go on; random weights have a loss of 0.7.
    assert losses[0][0] == 0 and [loss for _, loss in losses] == pytest.approx([expected] * 9, abs=0.05)
    for name in ("best", "last"):
        saved = torch.load(f"runs/fit/version_1/checkpoints/{name}.ckpt", weights_only=True)
        for key in ("state_dict", "current_model_state"):
            head = saved[key]["net.head.weight"]
            assert torch.allclose(head, published["state_dict"]["net.head.weight"], atol=1e-6)


@pytest.mark.slow
def test_a_short_run_is_as_good_as_without_it(cli, workdir) -> None:
    result = cli("fit", *DIGITS, *SMALL, "--trainer.max_epochs=10", *ema())
    assert result.code == 0, result.err
    assert re.search(r"advice +EMA's decay reaches back over \d{3}% of the run's steps; lower it", result.out)
    metrics = json.loads(Path("runs/digits/version_0/metrics.json").read_text())
    assert metrics["val/acc"] > 0.95
    assert cli("test", "--ckpt_path", "last").code == 0
    assert json.loads(Path("runs/digits/version_0/metrics.json").read_text())["test/acc"] > 0.95


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["update_starting_at_step=8"], "EMA: update_starting_at_step 8 leaves nothing of the run to average"),
        (["decay=0.9", "--trainer.precision=bf16-true"], "use trainer.precision bf16-mixed"),
    ],
)
def test_what_cannot_be_averaged_is_one_line(cli, few, options, words) -> None:
    result = cli(*few, *ema(options[0]), *options[1:])
    assert result.code == 2 and result.err.count("\n") == 1 and words in result.err, result.err


@pytest.mark.slow
def test_a_trial_run_is_shorter_than_the_start(cli, few) -> None:
    assert cli(*few, *ema("update_starting_at_step=5"), "--trainer.fast_dev_run=true").code == 0


@pytest.mark.parametrize("decay", ["1", "-0.1", "2"])
def test_bad_decay(cli, few, decay) -> None:
    result = cli(*few, *ema(f"decay={decay}"))
    assert (
        result.code == 2 and result.err.count("\n") == 1 and "EMA: decay must be at least 0 and below 1" in result.err
    )


@pytest.mark.slow
def test_images_on_the_disk_are_not_copied_with_the_weights(cli, few) -> None:
    result = cli(*few, "--trainer.callbacks+=project.run.EMA", "--data.cache=disk", "--trainer.max_epochs=1")
    assert result.code == 0, result.err
