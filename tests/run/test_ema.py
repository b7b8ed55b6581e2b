"""The average of the weights against a loop by hand: what is saved, its decay by the batch, a stop in validation."""

import os
import signal

import lightning as L
import numpy as np
import pytest
import torch
from conftest import make_folder

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
    ("options", "batch", "keep"),
    [
        ([], [], 0.9),
        ([], ["--model.reference_batch=3", "--model.lr_scaling=linear"], 0.9**4),
        ([], ["--model.reference_batch=48", "--model.lr_scaling=sqrt"], 0.9**0.25),
    ],
)
def test_the_average_is_that_of_a_loop(cli, few, monkeypatch, options, batch, keep) -> None:
    watch = Watch()
    result = watched(monkeypatch, cli, watch, *few, *ema("decay=0.9", *options), *batch)
    assert result.code == 0, result.err
    checkpoint = torch.load(LAST, weights_only=True)
    mean = dict(watch.seen[0])
    for weights in watch.seen[1:]:
        mean = {name: keep * mean[name] + (1 - keep) * value for name, value in weights.items()}
    assert len(watch.seen) == 9
    for name, value in mean.items():
        assert np.allclose(checkpoint["state_dict"][name].numpy(), value, atol=1e-5), name
        assert np.allclose(checkpoint["current_model_state"][name].numpy(), watch.seen[-1][name], atol=1e-7)
    assert not np.allclose(
        checkpoint["state_dict"]["net.head.weight"].numpy(), watch.seen[-1]["net.head.weight"], atol=1e-4
    )


@pytest.mark.parametrize(
    "average",
    ["project.run.EMA", pytest.param("lightning.pytorch.callbacks.EMAWeightAveraging", marks=pytest.mark.slow)],
)
def test_stopped_while_it_validates_and_resumed(cli, few, workdir, monkeypatch, average) -> None:
    options = [*few, f"--trainer.callbacks+={average}", "--trainer.callbacks.decay=0.9"]
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


@pytest.mark.parametrize("decay", ["1", "-0.1", "2"])
def test_bad_decay(cli, few, decay) -> None:
    result = cli(*few, *ema(f"decay={decay}"))
    assert (
        result.code == 2 and result.err.count("\n") == 1 and "EMA: decay must be at least 0 and below 1" in result.err
    )
