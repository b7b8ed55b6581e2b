"""What a person means by YAML and by words on the command line."""

import functools
from pathlib import Path

import pytest
import torch
import yaml

from project.cli import parse
from project.errors import UserError
from project.nets import ConvNet
from project.notation import load, written
from project.optim import Cosine

NET = ["--model.net", "project.nets.ConvNet"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {net: x}\ndata:\n  root: a\nmodel:\n  lr: 1\n", "model is given twice, in lines 1 and 4"),
        ("data:\n  root: a\n  channels: 1\n  root: b\n", "root is given twice, in lines 2 and 4"),
        ("model: {lr: 1, lr: 2}\n", "lr is given twice, in lines 1 and 1"),
        ("model:\n  lr_mult:\n    '^head': 1\n    ^head: 2\n", "^head is given twice, in lines 3 and 4"),
    ],
)
def test_a_key_given_twice_is_an_error_in_every_file(cli, workdir, text, words) -> None:
    Path("a.yaml").write_text(text)
    result = cli("fit", *NET, "--config", "a.yaml")
    assert result.code == 2 and result.err.count("\n") == 1 and words in result.err and "a.yaml" in result.err


@pytest.mark.parametrize("options", [["--config", "whole.yaml"], ["--data", "part.yaml"]])
def test_a_key_given_twice_in_a_part(cli, workdir, options) -> None:
    Path("whole.yaml").write_text("data: part.yaml\n")
    Path("part.yaml").write_text("batch_size: 8\nsplit_seed: 1\nbatch_size: 16\n")
    result = cli("fit", *NET, *options)
    assert result.code == 2 and "part.yaml: batch_size is given twice, in lines 1 and 3" in result.err


def test_merged_keys_may_be_overruled() -> None:
    assert load("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


def test_numbers_truth_and_text_by_their_place(workdir) -> None:
    """In a file and on the command line."""
    Path("a.yaml").write_text(
        "data: {class_names: [yes, no, 010, 1e5, 0x10, 1_0, 2020-01-01, 1:30], batch_size: 032, split_seed: 1_000}\n"
        "model: {lr: 1e-3, channels_last: no}\ntrainer: {max_time: 1:02:03:04, limit_val_batches: 1}\n"
    )
    words = ["--data.class_names", "[yes, no, 010, 1e5, 0x10, 1_0, 2020-01-01, 1:30]", "--data.batch_size", "032"]
    words += ["--data.split_seed=1_000", "--model.lr", "1e-3", "--model.channels_last", "no"]
    words += ["--trainer.max_time", "1:02:03:04", "--trainer.limit_val_batches", "1"]
    for config in (parse([*NET, "--config", "a.yaml"]), parse([*NET, *words])):
        data, model, trainer = config["data"], config["model"], config["trainer"]
        assert data["class_names"] == ["yes", "no", "010", "1e5", "0x10", "1_0", "2020-01-01", "1:30"]
        assert (data["batch_size"], data["split_seed"]) == (32, 1000)
        assert model["lr"] == 0.001 and model["channels_last"] is False
        assert trainer["max_time"] == "1:02:03:04" and type(trainer["limit_val_batches"]) is int
        assert config == parse_again(config)


def parse_again(config: dict) -> dict:
    Path("again.yaml").write_text(yaml.safe_dump(config))
    return parse(["--config", "again.yaml"])


@pytest.mark.parametrize("name", ["train", "val", "test", "predict"])
@pytest.mark.parametrize(("given", "kind"), [("1", int), ("1.0", float), ("0.5", float), ("7", int)])
def test_a_whole_number_of_batches_is_not_a_share(name, given, kind) -> None:
    found = parse([*NET, f"--trainer.limit_{name}_batches", given])["trainer"][f"limit_{name}_batches"]
    assert type(found) is kind and found == kind(given)


@pytest.mark.parametrize("name", ["overfit_batches", "val_check_interval"])
def test_other_numbers_of_batches(name) -> None:
    assert type(parse([*NET, f"--trainer.{name}", "1"])["trainer"][name]) is int
    assert type(parse([*NET, f"--trainer.{name}=1.0"])["trainer"][name]) is float


def test_paths_are_written_out_wherever_they_are_given(workdir, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DISK", str(workdir))
    saver = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "${DISK}/saved"}}
    trainer = {"default_root_dir": "~/runs", "callbacks": [saver]}
    Path("a.yaml").write_text(yaml.safe_dump({"model": {"weights": "$DISK/w.pt"}, "trainer": trainer}))
    Path("data.yaml").write_text("root: $DISK/images")
    Path("whole.yaml").write_text("data: $DISK/data.yaml")
    config = parse([*NET, "--config", "$DISK/a.yaml", "--config=$DISK/whole.yaml"])
    assert config["model"]["weights"] == f"{workdir}/w.pt" and config["data"]["root"] == f"{workdir}/images"
    assert config["trainer"]["default_root_dir"] == "/home/me/runs"
    assert config["trainer"]["callbacks"][0]["init_args"]["dirpath"] == f"{workdir}/saved"
    words = ["--data.root", "~/x", "--trainer.default_root_dir=~/y", "--model.weights", "$DISK/z"]
    config = parse([*NET, *words])
    assert (config["data"]["root"], config["trainer"]["default_root_dir"]) == ("/home/me/x", "/home/me/y")
    assert config["model"]["weights"] == f"{workdir}/z"


def test_a_dollar_that_is_no_variable_stays(workdir, monkeypatch) -> None:
    monkeypatch.setenv("DISK", "/disk")
    (workdir / "a$DISK").mkdir()
    Path("a.yaml").write_text("model: {lr_mult: {'head$': 2, 'a$DISK': 3}}\ndata: {root: a$DISK}\n")
    for options in (["--config", "a.yaml"], ["--data.root=a$DISK", "--model.lr_mult", "{'head$': 2, 'a$DISK': 3}"]):
        config = parse([*NET, *options])
        assert config["data"]["root"] == "a$DISK"
    assert parse([*NET, "--config", "a.yaml"])["model"]["lr_mult"] == {"head$": 2.0, "a$DISK": 3.0}


def test_a_variable_on_the_way_to_a_checkpoint(cli, trained, monkeypatch) -> None:
    monkeypatch.setenv("RUN", str(trained))
    assert cli("validate", "--ckpt_path", "$RUN/checkpoints/best.ckpt").code == 0


def test_settings_as_a_checkpoint_keeps_them() -> None:
    net = functools.partial(ConvNet, channels=[8], convs_per_block=2)
    found = written({"net": net, "task": ConvNet, "lr": 0.1, "schedule": Cosine(), "other": lambda: 0, "mean": None})
    assert found == {
        "net": {"class_path": "project.nets.convnet.ConvNet", "init_args": {"channels": [8], "convs_per_block": 2}},
        "task": {"class_path": "project.nets.convnet.ConvNet"},
        "lr": 0.1,
        "mean": None,
    }
    nested = written({"net": functools.partial(ConvNet, act=torch.nn.ReLU)})["net"]["init_args"]
    assert nested == {"act": {"class_path": "torch.nn.modules.activation.ReLU"}}


def test_words_that_belong_to_no_option(cli) -> None:
    for words in (["fit", "a.yaml"], ["report", "runs/a/version_0", "b"]):
        result = cli(*words)
        assert result.code == 2 and f"{words[1]} stands alone" in result.err and result.err.count("\n") == 1


def test_a_setting_that_is_not_yaml(workdir) -> None:
    with pytest.raises(UserError, match=r"model\.lr"):
        parse([*NET, "--model.lr", "{a: 1, a: 2}"])
