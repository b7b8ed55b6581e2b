"""The verdict on the loss curve: printed, kept in the run, and of all epochs, an interruption or not."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import make_folder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project.optim.diagnosis import diagnose

RUN = Path("runs/fit/version_0")


@pytest.fixture
def few(tmp_path) -> list[str]:
    root = make_folder(tmp_path / "few", {"blue": 25, "red": 25})
    net = ["--model.net", "project.nets.ConvNet", "--model.net.init_args.channels", "[4]", "--data.image_size", "8"]
    schedule = ["--model.lr=0.05", "--model.schedule=project.optim.Exponential", "--model.schedule.gamma=0.8"]
    return ["fit", "--data.root", str(root), "--data.batch_size", "12", *net, *schedule]


def logged(tag: str) -> list[float]:
    events = EventAccumulator(str(RUN))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def kept() -> dict[str, str]:
    return json.loads((RUN / "run.json").read_text())["learning_curve"]


def printed(out: str) -> str:
    (line,) = re.findall(r"^learning curve: (.*)$", out, re.MULTILINE)
    return line


def curve() -> list[tuple[float, float]]:
    callbacks = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    return [tuple(point) for point in callbacks["LearningCurve"]["points"]]


def check(out: str, epochs: int) -> None:
    """The words are those for the logged losses and rates of all epochs."""
    losses, rates = logged("train/loss"), logged("lr/all")
    assert len(losses) == epochs and rates == pytest.approx([0.05 * 0.8**epoch for epoch in range(epochs)])
    found = diagnose(losses, math.log(2), rates)
    assert kept()["shape"] == found.shape
    assert kept() == {"shape": found.shape, "evidence": found.evidence, "advice": found.advice}
    assert printed(out) == f"{found.shape}: {found.evidence}" + (f"; {found.advice}" if found.advice else "")
    assert curve() == [pytest.approx(point) for point in zip(losses, rates, strict=True)]


@pytest.mark.slow
def test_the_curve_of_all_epochs_is_judged_after_a_resume_too(cli, few) -> None:
    result = cli(*few, "--trainer.max_epochs=3")
    assert result.code == 0, result.err
    assert (
        kept()["shape"] == "undecided"
        and printed(result.out) == "undecided: too few epochs (3); it takes 4, at a learning rate above 0"
    )
    check(result.out, 3)
    result = cli("fit", "--ckpt_path", "last", "--trainer.max_epochs=6")
    assert result.code == 0, result.err
    check(result.out, 6)
    assert kept()["shape"] != "undecided"
    record = json.loads((RUN / "run.json").read_text())
    assert record["split"]["train"] == 32  # the rest of the record is as it was


STOP = """
from lightning import Callback
class Stop(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 7: raise KeyboardInterrupt
class StopInValidation(Callback):
    def on_validation_batch_start(self, trainer, *_):
        if trainer.global_step == 9 and trainer.ckpt_path is None: raise KeyboardInterrupt
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["Stop", "StopInValidation"])
def test_an_interrupted_epoch_counts_once_and_whole(cli, few, workdir, monkeypatch, recwarn, place) -> None:
    """Three steps an epoch, each with a rate of its own; stopped within the third epoch, or after its last step."""
    (workdir / "stop_curve.py").write_text(STOP)
    monkeypatch.syspath_prepend(workdir)
    options = [*few, "--trainer.max_epochs=5", "--model.schedule_interval=step"]
    assert cli(*options, f"--trainer.callbacks+=stop_curve.{place}").code == 130
    assert len(curve()) == 2
    recwarn.clear()
    result = cli("fit", "--ckpt_path", "last")
    assert result.code == 0, result.err
    assert len(re.findall(r"^epoch 3/5 ", result.out, re.MULTILINE)) == 1  # its line is not lost
    assert not [str(warning.message) for warning in recwarn if "metric" in str(warning.message)]
    resumed, words, in_force = curve(), kept(), logged("lr/all")
    (workdir / "whole").mkdir()
    monkeypatch.chdir(workdir / "whole")
    assert cli(*options).code == 0
    assert len(curve()) == 5 and resumed == [pytest.approx(point) for point in curve()]
    rates = [sum(0.05 * 0.8**step for step in range(3 * epoch, 3 * epoch + 3)) / 3 for epoch in range(5)]
    assert [rate for _, rate in resumed] == pytest.approx(rates)
    assert words == kept() and in_force == pytest.approx(logged("lr/all"))  # of every epoch


def test_a_trial_run_is_not_judged(cli, few) -> None:
    result = cli(*few, "--trainer.fast_dev_run=2")
    assert result.code == 0 and "learning curve" not in result.out
