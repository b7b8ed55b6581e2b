"""`lr_find` as a command: what it writes, prints and refuses."""

import os
import signal

import numpy as np
import pytest
import yaml
from conftest import DIGITS, SMALL

import project.extras.tune.lr_find_command
from project.extras.tune.lr_find import RateSweep

FIND = ["lr_find", *DIGITS, *SMALL]


def test_the_command_writes_a_config_that_fit_takes_and_no_run(cli, workdir) -> None:
    result = cli(*FIND, "--steps", "60", "--out", "found.yaml")
    assert result.code == 0, result.err
    assert sorted(path.name for path in workdir.iterdir()) == ["found.png", "found.yaml"]
    for word in ("steepest", "valley", "minimum/10", "edge/10", "chosen", "found.yaml", "found.png"):
        assert word in result.out
    text = (workdir / "found.yaml").read_text()
    content = yaml.safe_load(text)
    assert content.keys() == {"model"} and content["model"].keys() == {"lr"} and 1e-4 < content["model"]["lr"] < 0.1
    assert f"model.lr {content['model']['lr']:g}" in result.out
    assert "1151 training images" in text and "64 images" in text
    assert cli("fit", *DIGITS, "--config", "found.yaml", *SMALL[:-2], "--trainer.max_epochs", "1").code == 0
    config = yaml.safe_load((workdir / "runs" / "digits" / "version_0" / "config.yaml").read_text())
    assert config["model"]["lr"] == content["model"]["lr"]
    again = cli(
        "lr_find", "--config", "runs/digits/version_0/config.yaml", "--steps", "10", "--min_lr", "1e-5"
    )  # a run's own config
    assert again.code in (0, 1), again.err


def test_lightnings_small_rates_are_numbers_in_yaml(cli, workdir, monkeypatch) -> None:
    from project.extras.tune.curve import Reading, Suggestion

    tiny = Suggestion("edge/10", 1.23456e-05, "words")
    monkeypatch.setattr(
        project.extras.tune.lr_find_command, "read_curve", lambda *a: Reading(np.ones(len(a[0])), [tiny], tiny, "why")
    )
    assert cli(*FIND, "--steps", "10").code == 0
    assert yaml.safe_load((workdir / "lr.yaml").read_text())["model"]["lr"] == 1.23e-05


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--min_lr", "1e-12", "--max_lr", "1e-11"], "does not fall"),
        (["--min_lr", "1e4", "--max_lr", "1e5"], "the loss"),
    ],
)
def test_without_a_descent_it_says_so_and_writes_no_rate(cli, workdir, option, words) -> None:
    before = "# The learning rate that a range test found.\nmodel: {lr: 0.5}\n"
    (workdir / "lr.yaml").write_text(before)
    result = cli(*FIND, "--steps", "20", *option)
    assert (
        result.code == 1 and "no rate" in result.out and words in result.out and "lr.yaml was not written" in result.out
    )
    assert (workdir / "lr.png").is_file() and (workdir / "lr.yaml").read_text() == before


def test_a_file_of_another_hand_is_not_overwritten(cli, workdir) -> None:
    (workdir / "digits.yaml").write_text("data: {batch_size: 3}\n")
    result = cli(*FIND, "--out", "digits.yaml")
    assert result.code == 2 and "is there already and is not from this command" in result.err
    assert (workdir / "digits.yaml").read_text() == "data: {batch_size: 3}\n"


@pytest.mark.parametrize(("optimizer", "expected"), [("AdamW", 0.01), ("SGD", 0.5)])
def test_a_curve_without_an_edge_takes_the_highest_usual_rate_and_says_so(
    cli, workdir, monkeypatch, optimizer, expected
) -> None:
    from project.extras.tune.curve import Reading, Suggestion

    high = Suggestion("edge/10", 1.0, "words")
    monkeypatch.setattr(
        project.extras.tune.lr_find_command,
        "read_curve",
        lambda *a: Reading(np.ones(len(a[0])), [high], high, "why", falling=True),
    )
    result = cli(
        *FIND, "--steps", "10", "--model.optimizer", f"torch.optim.{optimizer}", "--model.lr_scaling", "linear"
    )
    assert yaml.safe_load((workdir / "lr.yaml").read_text())["model"]["lr"] == expected, result.err
    assert f"highest rate that is common for {optimizer}" in result.out and "unusual" not in result.out


def test_an_unusual_rate_is_remarked(cli, workdir, monkeypatch) -> None:
    from project.extras.tune.curve import Reading, Suggestion

    high = Suggestion("edge/10", 0.2, "words")
    monkeypatch.setattr(
        project.extras.tune.lr_find_command, "read_curve", lambda *a: Reading(np.ones(len(a[0])), [high], high, "why")
    )
    result = cli(*FIND, "--steps", "10", "--max_lr", "0.1", "--out", "here/found.yaml")
    assert result.code == 2  # there is no such folder
    (workdir / "here").mkdir()
    result = cli(*FIND, "--steps", "10", "--max_lr", "0.1", "--out", "here/found.yaml")
    assert (
        "unusual for AdamW: 1e-05 to 0.01 is common" in result.out and "outside the rates that were tried" in result.out
    )
    assert "--config here/found.yaml" in result.out  # as it must be typed


def test_callbacks_that_have_no_part_are_named(cli, workdir) -> None:
    result = cli(*FIND, "--steps", "10", "--trainer.callbacks+=project.run.EMA")
    assert "without EMA" in result.out


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--steps", "9"], "steps must be 10 or more"),
        (["--min_lr", "1", "--max_lr", "0.1"], "min_lr must be above 0 and below max_lr"),
        (["--min_lr=-1"], "min_lr"),
        (["--min_lr", "0.1", "--max_lr", "0.5"], "max_lr must be at least 10 times min_lr"),
        (["--max_lr", "1e31"], "at most 1e+30"),
        (["--trainer.limit_train_batches", "0"], "trainer.limit_train_batches 0 leaves no step to measure"),
        (["--model.optimizer", "torch.optim.Rprop"], "Rprop"),
        (["--out", "/proc/lr.yaml"], "cannot be written"),
        (["--step", "20"], "step: there is no such key"),
        (["--out", "nowhere/lr.yaml"], "there is no folder"),
        (["--out", "lr.txt"], "must end in .yaml"),
        (["--out", "."], "is a folder"),
        (["--steps", "many"], "steps"),
        (["--ckpt_path", "best"], "ckpt_path: lr_find"),
        (["--model.lr_mult", "{nothing: 2}"], "model.lr_mult"),
    ],
)
def test_bad_input_is_one_line(cli, workdir, option, words) -> None:
    result = cli(*FIND, *option)
    assert result.code == 2 and words in result.err and len(result.err.splitlines()) == 1
    assert not list(workdir.iterdir())


def test_ctrl_c_leaves_nothing(cli, workdir, monkeypatch) -> None:
    def interrupt(self, trainer, loss) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RateSweep, "_note", interrupt)
    before = signal.getsignal(signal.SIGINT)
    assert cli(*FIND, "--steps", "20").code == 130
    assert not list(workdir.iterdir())
    signal.signal(signal.SIGINT, before)


def test_a_disk_that_is_full_is_one_line(cli, workdir, monkeypatch) -> None:
    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    result = cli(*FIND, "--steps", "20")
    assert result.code == 2 and "No space left" in result.err and not list(workdir.iterdir())
