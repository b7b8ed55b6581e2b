"""Order of config files and options, however they are written; what a command takes from a checkpoint."""

from itertools import permutations
from pathlib import Path

import pytest
import torch
import yaml
from conftest import DIGITS, SMALL

from project.errors import UserError
from project.settings import (
    arrange,
    checkpoint_config,
    class_first,
    config_files,
    given,
    load_checkpoint,
    option,
    read_config,
    split_arguments,
)

FILES = [
    ["--config", "a.yaml"],
    ["--config=b.yaml"],
    ["-c", "c.yaml"],
    ["-c=d.yaml"],
    ["--data", "e.yaml"],
    ["--trainer=f.yaml"],
]
OPTIONS = [
    ["--model.lr", "1"],
    ["--data.root=x"],
    ["--trainer.fast_dev_run"],
    ["--model.net.init_args.channels", "[1,2]"],
]


def flat(parts) -> list[str]:
    return [word for part in parts for word in part]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_files_and_options_in_every_position(order) -> None:
    """Two files and two options in every order; then all of them, interleaved."""
    for first in range(0, 6, 2):
        parts = [*FILES[first : first + 2], *OPTIONS[(first // 2) : (first // 2) + 2]]
        files, options = split_arguments(flat(parts[i] for i in order))
        assert files == flat(parts[i] for i in order if i < 2)
        assert options == flat(parts[i] for i in order if i >= 2)
    mixed = flat(part for pair in zip(FILES, [OPTIONS[i] for i in order] + [[], []], strict=True) for part in pair)
    files, options = split_arguments(mixed)
    assert files == flat(FILES) and options == flat(OPTIONS[i] for i in order)


def test_what_only_looks_like_a_file() -> None:
    for arguments in (
        ["--data.root", "--config.yaml"],
        ["--configs", "a.yaml"],
        ["--models=a"],
        ["--data.augment+=x"],
        ["-cx"],
    ):
        assert split_arguments(arguments) == ([], arguments)
    assert split_arguments(["--model.lr", "1", "--config"]) == (
        ["--config"],
        ["--model.lr", "1"],
    )  # the parser says what is missing
    assert split_arguments([]) == ([], [])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--a.b.c=1", "--a.b=x"], ["--a.b=x", "--a.b.c=1"]),
        (["--a.b.c", "1", "2", "--a.b", "x"], ["--a.b", "x", "--a.b.c", "1", "2"]),
        (["--a.bc=1", "--a.b=x"], ["--a.bc=1", "--a.b=x"]),  # another key
        (["--a.b=x", "--a.b.c=1"], ["--a.b=x", "--a.b.c=1"]),
        (["--d", "--a.b.c=1", "--e=2", "--a.b=x"], ["--d", "--a.b=x", "--a.b.c=1", "--e=2"]),
        (["--a.b.c=1", "--a.b.d=2", "--a.b=x"], ["--a.b=x", "--a.b.c=1", "--a.b.d=2"]),
        (["--a.b.c.d=1", "--a.b.c=y", "--a.b=x"], ["--a.b=x", "--a.b.c=y", "--a.b.c.d=1"]),
        ([], []),
        (["x", "--a.b"], ["x", "--a.b"]),
    ],
)
def test_a_class_comes_before_its_options(given, expected) -> None:
    assert class_first(given) == expected
    assert class_first(expected) == expected  # nothing left to do


def test_config_files_in_the_order_given(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    files, _ = split_arguments(
        ["--config", "a.yaml", "--data", "no.yaml", "--config=b.yaml", "-c", "~/c.yaml", "--trainer=t.yaml"]
    )
    assert config_files(files) == [Path("a.yaml"), Path("b.yaml"), Path("/somewhere/c.yaml")]
    assert config_files(["--config=b.yaml", "-c", "a.yaml"]) == [Path("b.yaml"), Path("a.yaml")]


@pytest.fixture
def files(workdir) -> list[str]:
    """Two config files, the second in a folder of its own with parts; as arguments."""
    (workdir / "one.yaml").write_text(
        "ckpt_path: one.ckpt\ntrainer: {default_root_dir: first, max_epochs: 3}\nseed_everything: 7\n"
    )
    (workdir / "deep" / "part").mkdir(parents=True)
    (workdir / "deep" / "two.yaml").write_text("trainer: part/trainer.yaml\nmodel: part/model.yaml\ndata: {root: x}\n")
    (workdir / "deep" / "part" / "trainer.yaml").write_text("default_root_dir: second\n")
    (workdir / "deep" / "part" / "model.yaml").write_text("class_names: [a, b]\nnet: {init_args: net.yaml}\n")
    (workdir / "deep" / "part" / "net.yaml").write_text("never: read\n")
    return ["--config", "one.yaml", "--config=deep/two.yaml"]


def test_option_from_the_command_line(files) -> None:
    assert option("ckpt_path", [], ["--ckpt_path", "x"]) == "x"
    assert option("ckpt_path", [], ["--ckpt_path=x=y"]) == "x=y"
    assert (
        option("ckpt_path", [], ["--ckpt_path", "x", "--ckpt_path=y", "--model.lr", "1"]) == "y"
    )  # the last one counts
    assert option("ckpt_path", [], ["--ckpt_path=x", "--ckpt_path", "y"]) == "y"
    assert option("ckpt_path", [], ["--ckpt_path"]) is None
    assert option("ckpt_path", [], ["--ckpt_paths", "x", "--model.ckpt_path=y"]) is None
    assert option("ckpt_path", files, ["--ckpt_path", "x"]) == "x"  # above the files
    assert option("ckpt_path", [], ["--ckpt_path=", "--model.lr", "1"]) in (None, "")  # never the next option


def test_option_from_the_files(files) -> None:
    assert option("ckpt_path", files, ["--model.lr", "1"]) == "one.ckpt"
    assert option("trainer.default_root_dir", files, []) == "second"  # the later file, in a part
    assert option("trainer.default_root_dir", [*files[2:], *files[:2]], []) == "first"
    assert option("trainer.default_root_dir", [*files, "-c", "one.yaml"], []) == "first"
    assert option("trainer.default_root_dir", ["-c", "one.yaml", *files[2:]], []) == "second"
    assert option("trainer.default_root_dir", files, ["--trainer.default_root_dir=third"]) == "third"
    assert option("seed_everything", files, []) == "7"
    assert option("nothing", files, []) is None and option("trainer.max_epochs.more", files, []) is None


def test_option_in_a_part_given_on_the_command_line(files) -> None:
    assert option("trainer.default_root_dir", ["--trainer", "deep/part/trainer.yaml"], []) == "second"


def test_given_names_the_file(files) -> None:
    assert given("model.class_names", files) == Path("deep/two.yaml")  # through its part
    assert given("trainer.max_epochs", files) == Path("one.yaml")
    assert given("data.root", [*files, "--data.root", "y"]) == Path("deep/two.yaml")
    assert given("model.image_size", files) is None
    assert given("model.class_names", files[:2]) is None
    assert given("model.class_names", []) is None
    assert given("model.net.init_args.channels", files) is None


def test_a_linked_key_in_a_part_is_named(cli, files) -> None:
    result = cli("fit", *files[2:])
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert "set data.class_names instead (in deep/two.yaml)" in result.err


def test_config_files_that_cannot_be_read(workdir) -> None:
    (workdir / "open.yaml").write_text("a: 1\nb: [1,\n")
    (workdir / "tab.yaml").write_text("a:\n\t- 1\n")
    (workdir / "image.yaml").write_bytes(b"\xff\xfe\x00\x81")
    for name, words in (
        ("missing.yaml", "No such file"),
        (".", "cannot be read"),
        ("image.yaml", "not a text file"),
        ("open.yaml", "no valid YAML at line 3"),
        ("tab.yaml", "no valid YAML at line 2"),
    ):
        with pytest.raises(UserError) as caught:
            read_config(Path(name))
        assert words in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)
    for text in ("", "- a list", "words"):
        (workdir / "other.yaml").write_text(text)
        with pytest.raises(UserError, match=r"other.yaml must hold keys and values"):
            read_config(Path("other.yaml"))


# What a checkpoint says


def checkpoint() -> dict:
    config = {
        "seed_everything": 3,
        "trainer": {"max_epochs": 9},
        "model": {"lr": 0.5},
        "data": {"root": "/there", "image_size": None, "class_names": None, "channels": 3, "batch_size": 8},
        "checkpoint": {"monitor": "val/loss"},
    }
    hyper = {"class_names": ["a", "b"], "image_size": 48, "in_channels": 1, "resize": "crop", "lr": 0.5}
    return {"config": yaml.safe_dump(config), "hyper_parameters": hyper}


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_every_command_takes_its_part(command) -> None:
    found = checkpoint_config(checkpoint(), command)
    assert set(found) == (
        {"seed_everything", "trainer", "model", "data", "checkpoint"} if command == "fit" else {"model", "data"}
    )
    assert found["model"] == {"lr": 0.5}
    # the model's view of the data, not what was left open in the config
    assert found["data"] == {
        "root": None if command == "predict" else "/there",
        "image_size": 48,
        "class_names": ["a", "b"],
        "channels": 1,
        "resize": "crop",
        "batch_size": 8,
    }


@pytest.fixture
def saved(workdir) -> Path:
    """runs/a/version_0 with a best.ckpt, the latest run."""
    path = workdir / "runs" / "a" / "version_0" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(checkpoint(), path)
    (workdir / "runs" / "latest").write_text("a/version_0\n")
    return path


def test_arrange_puts_the_checkpoint_below_files_below_options(saved) -> None:
    arguments = [
        "--data.batch_size",
        "4",
        "--config",
        "x.yaml",
        "--ckpt_path=best",
        "--trainer",
        "t.yaml",
        "--model.lr=1",
    ]
    Path("x.yaml").write_text("data: {batch_size: 2}\n")
    Path("t.yaml").write_text("max_epochs: 3")
    found, path, content = arrange("fit", arguments)
    assert path.resolve() == saved and content["hyper_parameters"]["image_size"] == 48
    assert found[0] == "--config" and yaml.safe_load(found[1]) == checkpoint_config(checkpoint(), "fit")
    rest = ["--config", "x.yaml", "--trainer", "t.yaml", "--data.batch_size", "4", "--ckpt_path=best", "--model.lr=1"]
    assert found[2:-1] == rest
    assert found[-1] == f"--ckpt_path={path}"  # last, so it overrules the alias
    assert "\n" not in found[1].rstrip("\n")


@pytest.mark.parametrize("null", [[], ["--ckpt_path", "null"], ["--ckpt_path=None"]])
def test_without_a_checkpoint(saved, null) -> None:
    Path("x.yaml").write_text("model: {lr: 2}")
    assert arrange("fit", ["--model.lr", "1", "-c", "x.yaml", *null]) == (
        ["-c", "x.yaml", "--model.lr", "1", *null],
        None,
        {},
    )


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_commands_need_one(saved, command) -> None:
    with pytest.raises(UserError, match=f"{command} needs a trained model: --ckpt_path best"):
        arrange(command, ["--model.lr", "1"])
    assert arrange(command, ["--help"]) == (["--help"], None, {})
    assert arrange(command, ["--data.root", "x", "-h"]) == (["--data.root", "x", "-h"], None, {})


def test_the_checkpoint_may_be_named_in_a_file_and_the_runs_elsewhere(saved, workdir) -> None:
    (workdir / "runs").rename(workdir / "other")
    (workdir / "x.yaml").write_text("ckpt_path: best\ntrainer: {default_root_dir: other}\n")
    _, path, _ = arrange("test", ["--config", "x.yaml"])
    assert path == Path("other/a/version_0/checkpoints/best.ckpt")
    with pytest.raises(UserError, match="no run in nowhere"):
        arrange("test", ["--config", "x.yaml", "--trainer.default_root_dir", "nowhere"])


def test_checkpoints_that_are_none(workdir) -> None:
    for name, content in (
        ("list.ckpt", [1]),
        ("half.ckpt", {"config": ""}),
        ("weights.ckpt", {"state_dict": {}}),
        ("object.ckpt", {"config": "", "hyper_parameters": {}, "more": Path("x")}),  # not plain values
    ):
        torch.save(content, workdir / name)
        with pytest.raises(UserError) as caught:
            load_checkpoint(workdir / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    torch.save(checkpoint(), workdir / "good.ckpt")
    assert load_checkpoint(workdir / "good.ckpt") == checkpoint()


def test_spellings_of_the_same_run(cli, workdir) -> None:
    """The file's place and spelling change nothing: options overrule it, and it names the run."""
    short = ["--trainer.max_steps", "1", "--data.batch_size", "512", "--trainer.limit_val_batches", "1"]
    path = DIGITS[1]
    for number, arguments in enumerate(([*SMALL, *short, f"--config={path}"], ["-c", path, *SMALL, *short])):
        result = cli("fit", *arguments)
        assert result.code == 0, result.err
        config = yaml.safe_load((workdir / "runs" / "digits" / f"version_{number}" / "config.yaml").read_text())
        assert config["model"]["net"]["init_args"]["channels"] == [16, 32] and config["data"]["batch_size"] == 512


def test_a_later_file_overrules_an_earlier_one_in_any_spelling(cli, workdir) -> None:
    (workdir / "late.yaml").write_text("data: {batch_size: 512}\ntrainer: {max_steps: 1, limit_val_batches: 1}\n")
    (workdir / "early.yaml").write_text("data: {batch_size: 4}\n")
    result = cli("fit", *DIGITS, *SMALL, "-c", "early.yaml", "--config=late.yaml")
    assert result.code == 0, result.err
    run = workdir / "runs" / "digits" / "version_0"  # the first file names the run
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["batch_size"] == 512
