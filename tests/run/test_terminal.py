"""What is printed: the table at the start, a line an epoch, no bar in a log file."""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import nn

from project.classifier import ImageClassifier
from project.run.terminal import EpochLine, StartTable, TerminalBar, describe, rate_words


def fake(groups: list[dict], data: SimpleNamespace | None = None, **arguments) -> SimpleNamespace:
    named = {"max_epochs": 7, "world_size": 2, "is_global_zero": True, "current_epoch": 0, **arguments}
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(datamodule=data, optimizers=[torch.optim.AdamW(groups)], strategy=strategy, **named)


def images(bad: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        source=SimpleNamespace(layout="flowers/<split>/<class>"),
        unused=Counter({"images that cannot be read": bad, ".txt": 1} if bad else {}),
        splits={"train": [0] * 70, "val": [0] * 20, "test": [0] * 10},
        class_names=["a", "b", "c"],
        class_counts=[30, 12, 28],
        fingerprint="0123456789ab",
        channels=3,
        image_size=48,
        batch_size=16,
        bad=[(f"{i}.png", "empty") for i in range(bad)],
    )


def model(trains_from: dict | None = None, **recipe) -> ImageClassifier:
    def net(*_: int) -> nn.Module:
        return nn.Sequential(nn.Linear(1000, 3), nn.Linear(3, 3))

    module = ImageClassifier(net, ["a", "b", "c"], **recipe)
    module.freezing.trains_from = trains_from or {"0.bias": None}
    return module


def groups(module: ImageClassifier) -> list[dict]:
    return [
        {"name": "head", "params": list(module.net[1].parameters()), "lr": 0.01, "weight_decay": 0.0},
        {"name": "rest", "params": list(module.net[0].parameters()), "lr": 0.002, "weight_decay": 0.05},
    ]


def setting(**arguments) -> tuple[SimpleNamespace, ImageClassifier]:
    """A trainer and its model."""
    module = model()
    module.trainer = fake(groups(module), images(), **arguments)
    return module.trainer, module


def test_the_table() -> None:
    assert "\n".join(describe(*setting())).splitlines() == [
        "data       flowers/<split>/<class>: 3 classes (a, b, c); images: train 70, val 20, test 10",
        "           left out: nothing",
        "           12 to 30 training images each  (split 0123456789ab)",
        "           shape: 3 x 48 x 48, batch 16",
        "model      Sequential: 3,015 parameters, 3,012 trainable at the start",
        "optimizer  AdamW",
        "           group    parameters         lr     decay  trainable",
        "           head             12       0.01         0  yes",
        "           rest          3,003      0.002      0.05  3,000 yes, 3 no",
    ]


def test_what_trains_later_is_not_counted_at_the_start() -> None:
    trainer, module = setting()
    module.freezing.trains_from = {"1.weight": 2, "1.bias": 2}
    lines = describe(trainer, module)
    assert lines[3] == "model      Sequential: 3,015 parameters, 3,003 trainable at the start"
    assert lines[6].split()[0] == "head" and lines[6].endswith("  from epoch 3")


@pytest.mark.parametrize(
    ("rule", "batch", "words"),
    [
        ("linear", 32, ", for a batch of 128: learning rate x 4, weight decay x 1"),
        ("sqrt", 32, ", for a batch of 128: learning rate x 2, weight decay x 2"),  # 16 images x 2 devices x 4 batches
    ],
)
def test_the_table_says_how_the_rate_was_scaled(rule, batch, words) -> None:
    module = model(reference_batch=batch, lr_scaling=rule)
    module.trainer = fake(groups(module), images(), accumulate_grad_batches=4)
    assert f"optimizer  AdamW{words}" in describe(module.trainer, module)


def test_the_rate_in_the_table_is_the_base_rate() -> None:
    """A scheduler has moved lr to its first step's before the table is printed."""
    trainer, module = setting()
    torch.optim.lr_scheduler.LambdaLR(trainer.optimizers[0], lambda step: 0.04)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0004)
    lines = describe(trainer, module)
    assert [line.split()[2] for line in lines[6:8]] == ["0.01", "0.002"]


def test_what_was_left_out() -> None:
    trainer, module = setting()
    trainer.datamodule = images(bad=3)
    assert "           left out: images that cannot be read 3, .txt 1" in describe(trainer, module)[0].splitlines()


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"lr/all": 0.01}, "lr/all 0.01"),
        ({"lr/stem": 1e-5, "lr/head": 0.12345}, "lr/stem 1e-05  lr/head 0.123"),
        ({f"lr/{i}": 10.0**-i for i in range(5)}, "lr/4 0.0001 to lr/0 1"),
        ({f"lr/{i}": 10.0**-i for i in range(4)}, "lr/0 1  lr/1 0.1  lr/2 0.01  lr/3 0.001"),
    ],
)
def test_rates_on_a_line(rates, words) -> None:
    assert rate_words(rates) == words


def test_one_process_prints(capsys, monkeypatch) -> None:
    StartTable().on_fit_start(*setting())
    assert capsys.readouterr().out.startswith("data       flowers")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    StartTable().on_fit_start(*setting())
    assert capsys.readouterr().out == ""


def run_epochs(count: int, validated: Sequence[int] = (0, 1, 2), **arguments) -> None:
    line = EpochLine()
    for epoch in range(count):
        metrics = {
            "train/loss": torch.tensor(1.5 - epoch),
            "lr/head": torch.tensor(0.01),
            "lr/rest": torch.tensor(2e-6),
        }
        named = {"callback_metrics": {}, "is_global_zero": True, "max_epochs": count, **arguments}
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(done=True))
        trainer = SimpleNamespace(current_epoch=epoch, global_step=epoch, fit_loop=loop, **named)
        line.on_train_epoch_start(trainer, None)
        trainer.global_step += 1
        trainer.callback_metrics.update(metrics | {"val/acc": torch.tensor(0.25), "val/loss": torch.tensor(2.0)})
        if epoch in validated:
            line.on_validation_end(trainer, None)
    line.on_train_end(trainer, None)


def test_what_an_earlier_epoch_was_validated_with_is_not_shown_again(capsys) -> None:
    run_epochs(2, validated=[0], callback_metrics={})
    first, second = capsys.readouterr().out.splitlines()
    assert "val/acc" in first and "val/acc" not in second


def test_one_line_for_every_epoch(capsys) -> None:
    metrics: dict[str, torch.Tensor] = {}
    run_epochs(2, callback_metrics=metrics)
    first, second = capsys.readouterr().out.splitlines()
    values = "  val/loss 2.0000  val/acc 0.2500  lr/head 0.01  lr/rest 2e-06  "
    assert re.fullmatch(re.escape(f"epoch 1/2  train/loss 1.5000{values}") + r"\d+\.\d s", first)
    assert re.fullmatch(re.escape(f"epoch 2/2  train/loss 0.5000{values}") + r"\d+\.\d s", second)


@pytest.mark.parametrize(
    ("arguments", "start"), [({"max_epochs": -1}, "epoch 1  "), ({"max_epochs": None}, "epoch 1  ")]
)
def test_without_a_number_of_epochs(capsys, arguments, start) -> None:
    run_epochs(1, **arguments)
    assert capsys.readouterr().out.startswith(start)


def test_other_processes_are_silent(capsys) -> None:
    run_epochs(2, is_global_zero=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("terminal", "rate"), [(True, 10), (False, 0)])
def test_the_bar_is_for_terminals(monkeypatch, terminal, rate) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    bar = TerminalBar()
    assert bar.refresh_rate == rate and bar.is_disabled != terminal
    assert bar.get_metrics(None, None) == {}


def test_a_log_file_has_no_bar(cli, folder, tiny_net) -> None:
    result = cli("fit", "--data.root", folder, *tiny_net, "--trainer.max_epochs", "2")
    assert result.code == 0 and result.err == ""
    assert "\r" not in result.out and "it/s" not in result.out and "%|" not in result.out
    assert [line.split()[1] for line in result.out.splitlines() if line.startswith("epoch")] == ["1/2", "2/2"]
