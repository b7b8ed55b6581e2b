"""A score that is printed or recorded is the score of the weights that are saved, however a run validates and ends."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import DIGITS, ROOT, SMALL, make_folder, slow_but

FIT = ["fit", *DIGITS, *SMALL, "--model.net.init_args.dropout", "0.2", "--trainer.max_epochs", "3"]
PLATEAU = (
    '{"class_path": "lightning.pytorch.cli.ReduceLROnPlateau", "init_args": {"monitor": "val/acc", "patience": 0}}'
)
SETTINGS = {
    "a share of an epoch": ["--trainer.val_check_interval", "0.4"],
    "batches of an epoch": ["--trainer.val_check_interval", "7"],
    "batches of the run": ["--trainer.val_check_interval", "25", "--trainer.check_val_every_n_epoch", "null"],
    "epochs": ["--trainer.check_val_every_n_epoch", "2"],
    "both": ["--trainer.check_val_every_n_epoch", "2", "--trainer.val_check_interval", "0.4"],
    "never until the end": ["--trainer.check_val_every_n_epoch", "9"],
    "steps": ["--trainer.max_steps", "43"],
    "steps and intervals": ["--trainer.max_steps", "43", "--trainer.val_check_interval", "0.4"],
    "fewest steps": ["--trainer.max_steps", "43", "--trainer.min_epochs", "3", "--trainer.min_steps", "50"],
    "a limit": ["--trainer.limit_train_batches", "0.7", "--trainer.val_check_interval", "5"],
    "some images": ["--trainer.limit_val_batches", "2", "--trainer.val_check_interval", "0.4"],
    "accumulation": ["--trainer.val_check_interval", "0.4", "--trainer.accumulate_grad_batches", "4"],
    "an average": ["--trainer.val_check_interval", "0.4", "--trainer.callbacks+", "project.run.EMA"],
    "less is better": ["--trainer.val_check_interval", "0.4", "--checkpoint.monitor", "val/loss"],
    "our plateau": ["--trainer.val_check_interval", "0.4", "--model.schedule", "project.optim.Plateau"],
    "a plateau": ["--trainer.val_check_interval", "0.4", "--model.schedule", PLATEAU],
}


def saved(name: str, run: str = "runs/digits/version_0") -> dict:
    return torch.load(f"{run}/checkpoints/{name}.ckpt", weights_only=True)


def validated(cli, name: str) -> str:
    """The accuracy that `validate` prints for a checkpoint."""
    result = cli("validate", "--ckpt_path", name)
    assert result.code == 0, result.err
    return re.search(r"^accuracy +(\S+)$", result.out, re.MULTILINE)[1]


@pytest.mark.parametrize("name", slow_but(SETTINGS, "steps and intervals"))
def test_the_score_is_that_of_the_checkpoint(cli, workdir, name) -> None:
    result = cli(*FIT, *SETTINGS[name])
    assert result.code == 0, result.err
    metrics = json.loads(Path("runs/digits/version_0/metrics.json").read_text())
    metrics.pop("val/images", None)
    printed = re.search(r"Validation accuracy (\S+) ", result.out)[1]
    assert validated(cli, "best") == printed == f"{metrics['val/acc']:.2%}"
    last, best = (saved(each)["callbacks"]["BestAndLast"] for each in ("last", "best"))
    assert best["metrics"] == best["best_metrics"] == last["best_metrics"] == metrics
    # The last weights are validated, whatever comes before, and the best is the best of all that was printed.
    assert validated(cli, "last") == f"{last['metrics']['val/acc']:.2%}"
    monitor = best["monitor"]
    scores = [float(score) for score in re.findall(rf"^epoch .*{monitor} (\S+)", result.out, re.MULTILINE)]
    assert (min if monitor == "val/loss" else max)(scores) == pytest.approx(best["best_score"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a share of an epoch", "accumulation", "an average", "our plateau", "a plateau"])
def test_resumed_from_the_middle_of_an_epoch(cli, workdir, name) -> None:
    """The lowest accuracy is an early one, within an epoch."""
    assert cli(*FIT, *SETTINGS[name], "--checkpoint.mode", "min").code == 0
    whole, steps = saved("last"), len(range(0, 1151 - 1, 64))
    assert saved("best")["global_step"] % steps and saved("best")["epoch"] < 2
    os.remove("runs/digits/version_0/checkpoints/last.ckpt")
    assert cli("fit", "--ckpt_path", "best").code == 0
    resumed = saved("last")
    assert all(torch.equal(value, resumed["state_dict"][key]) for key, value in whole["state_dict"].items())
    assert resumed["callbacks"]["BestAndLast"] == whole["callbacks"]["BestAndLast"]


@pytest.mark.slow
def test_a_plateau_sees_each_validation_once(cli, workdir) -> None:
    """Validated in epochs 2, 4 and 6 and never better: lowered after each of them, by torch's rule as by ours."""
    never = {"monitor": "val/loss", "patience": 0, "threshold": 1.0, "factor": 0.1}
    rates = []
    for path in ("project.optim.Plateau", "lightning.pytorch.cli.ReduceLROnPlateau"):
        schedule = json.dumps({"class_path": path, "init_args": never})
        options = ["--trainer.max_epochs", "7", "--trainer.check_val_every_n_epoch", "2", "--model.schedule", schedule]
        result = cli(*FIT, *options)
        assert result.code == 0, result.err
        rates.append(re.findall(r"lr/all (\S+)", result.out))
    assert rates[0] == rates[1] == ["0.02"] * 2 + ["0.002"] * 2 + ["0.0002"] * 2 + ["2e-05"]


def test_without_checkpoints_the_score_is_of_the_best(cli, workdir) -> None:
    options = ["--trainer.enable_checkpointing", "false", "--trainer.max_steps", "3", "--trainer.max_epochs", "1"]
    result = cli(*FIT, *options)
    assert result.code == 0 and "Validation accuracy" in result.out and not list(workdir.glob("runs/*/*/*/*.ckpt"))
    assert "val/acc" in json.loads(Path("runs/digits/version_0/metrics.json").read_text())


def test_recorded_before_it_is_printed(cli, folder, tiny_net, workdir, monkeypatch) -> None:
    """A terminal that fails on a letter leaves the record whole."""
    for old, new in (("red", "猫"), ("blue", "犬")):
        (folder / old).rename(folder / new)
    assert cli("fit", "--data.root", folder, *tiny_net, "--trainer.max_epochs", "1").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
        with pytest.raises(UnicodeEncodeError):
            cli("test", "--ckpt_path", "best")
    metrics = json.loads(next(workdir.glob("runs/*/*/metrics.json")).read_text(encoding="utf-8"))
    assert {"test/acc", "val/acc", "test/acc_class/猫"} <= metrics.keys()


@pytest.mark.slow
def test_letters_that_a_terminal_cannot_show(tmp_path, tiny_net) -> None:
    make_folder(tmp_path / "images", {"red": 20, "blue": 20})
    for old, new in (("red", "猫"), ("blue", "犬")):
        (tmp_path / "images" / old).rename(tmp_path / "images" / new)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}
    fit = ["fit", "--data.root", "images", *tiny_net, "--trainer.max_epochs", "1"]
    for words in (fit, ["test", "--ckpt_path", "best"], ["validate", "--ckpt_path", "best"]):
        command = [sys.executable, "-m", "project", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
    assert "test/acc_class/猫" in json.loads(next(tmp_path.glob("runs/*/*/metrics.json")).read_text())
