"""The record of a run: flat hyperparameters, git, metrics.json."""

import json
import subprocess
from pathlib import Path

import pytest

import project.run.record as module
from project.run.paths import flatten


def test_flatten() -> None:
    config = {
        "seed": 1,
        "model": {
            "lr": 0.1,
            "name": "x",
            "fast": True,
            "mean": None,
            "net": {"init_args": {"channels": [8, 16], "deep": {"er": 2}}},
        },
        "empty": {},
        "nothing": None,
    }
    assert flatten(config) == {
        "seed": 1,
        "model.lr": 0.1,
        "model.name": "x",
        "model.fast": True,
        "model.net.init_args.channels": "[8, 16]",
        "model.net.init_args.deep.er": 2,
    }
    assert flatten({}) == {}


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository of one commit that the record is made in."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "code.py").write_text("1\n")
    for command in (
        ["init", "-q"],
        ["add", "code.py"],
        ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    monkeypatch.setattr(module, "__file__", str(folder / "code.py"))
    return folder


def test_git_commit_and_changes(repository) -> None:
    commit = subprocess.run(
        ["git", "log", "--format=%H"], cwd=repository, capture_output=True, text=True
    ).stdout.strip()
    assert module._git() == {"commit": commit, "dirty": False}
    (repository / "code.py").write_text("2\n")
    assert module._git() == {"commit": commit, "dirty": True}


def test_outside_a_repository_and_without_git(tmp_path, monkeypatch, repository) -> None:
    (tmp_path / "plain").mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
        patch.setattr(module, "__file__", str(tmp_path / "plain" / "code.py"))
        assert module._git() is None
    monkeypatch.setenv("PATH", str(tmp_path / "plain"))
    assert module._git() is None


def test_the_record(cli, folder, tiny_net, workdir) -> None:
    options = ["--data.root", folder, *tiny_net, "--trainer.max_epochs", "1", "--seed_everything", "11"]
    assert cli("fit", *options).code == 0
    record = json.loads((workdir / "runs" / "fit" / "version_0" / "run.json").read_text())
    assert record["seed"] == 11 and record["images_left_out"] == {}
    assert {name: record["split"][name] for name in ("train", "val", "test")} == {"train": 39, "val": 9, "test": 12}
    assert set(record["versions"]) >= {"python", "torch", "torchvision", "lightning", "numpy"}
    (command,) = record["commands"]
    assert command["time"][:2] == "20" and isinstance(command["arguments"], list)
    before = (workdir / "runs/fit/version_0/config.yaml").read_text()
    assert cli("fit", "--ckpt_path", "last", "--model.stem_lr", "0.5").code == 2  # a failed attempt changes nothing
    assert (workdir / "runs/fit/version_0/config.yaml").read_text() == before
    assert cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2").code == 0
    assert len(json.loads((workdir / "runs/fit/version_0/run.json").read_text())["commands"]) == 2
