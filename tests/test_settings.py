"""Order of config files and options, however they are written; what a command takes from a checkpoint."""

from itertools import permutations
from pathlib import Path

import pytest
import torch
import yaml
from conftest import DIGITS, SMALL

from project import commands
from project.commands import Command
from project.errors import UserError
from project.settings import Arguments, Loaded, arrange, checkpoint_config, load_checkpoint, read_config

FILES = [
    ["--config", "a.yaml"],
    ["--config=b.yaml"],
    ["-c", "c.yaml"],
    ["-c=d.yaml"],
    ["--data", "e.yaml"],
    ["--trainer=f.yaml"],
]
READ = [
    ("config", "a.yaml"),
    ("config", "b.yaml"),
    ("config", "c.yaml"),
    ("config", "d.yaml"),
    ("data", "e.yaml"),
    ("trainer", "f.yaml"),
]
OPTIONS = [
    ["--model.lr", "1"],
    ["--data.root=x"],
    ["--trainer.fast_dev_run"],
    ["--model.net.init_args.channels", "[1,2]"],
]
CORE = {command.name: command for command in commands.CORE}


def flat(parts) -> list[str]:
    return [word for part in parts for word in part]


def files_of(read: Arguments) -> list[tuple[str, str]]:
    return [(part, str(path)) for part, path in read.files]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_files_and_options_in_every_position(order) -> None:
    """Two files and two options in every order; then all of them, interleaved."""
    for first in range(0, 6, 2):
        parts = [*FILES[first : first + 2], *OPTIONS[(first // 2) : (first // 2) + 2]]
        read = Arguments.read(flat(parts[i] for i in order))
        assert files_of(read) == [READ[first + i] for i in order if i < 2]
        assert read.options == [parts[i] for i in order if i >= 2]
    mixed = flat(part for pair in zip(FILES, [OPTIONS[i] for i in order] + [[], []], strict=True) for part in pair)
    read = Arguments.read(mixed)
    assert files_of(read) == READ and read.options == [OPTIONS[i] for i in order]
    assert read.words() == [f"--{part}={path}" for part, path in READ] + flat(read.options)


def test_what_only_looks_like_a_file() -> None:
    for words in (
        ["--data.root", "x.yaml"],
        ["--configs", "a.yaml"],
        ["--models=a"],
        ["--data.augment+=x"],
        ["-cx"],
        [],
    ):
        read = Arguments.read(words)
        assert read.files == [] and flat(read.options) == words
    assert Arguments.read(["--model.lr", "1", "--config"]).words() == [
        "--model.lr",
        "1",
        "--config",
    ]  # the parser says what is missing


def test_a_number_is_not_an_option_and_a_switch_needs_no_value() -> None:
    assert Arguments.read(["--model.lr", "-1e-3", "--x", "-1"]).options == [["--model.lr", "-1e-3"], ["--x", "-1"]]
    read = Arguments.read(["--resume", "--test", "false", "--test", "-c", "a.yaml"], {"resume", "test"})
    assert read.options == [["--resume=true"], ["--test", "false"], ["--test=true"]]


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
    assert Arguments.read(given).words() == expected
    assert Arguments.read(expected).words() == expected  # nothing left to do


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


def value(key: str, words: list[str]) -> object:
    return Arguments.read(words).value(key)


def test_a_value_from_the_command_line(files) -> None:
    assert value("ckpt_path", ["--ckpt_path", "x"]) == "x"
    assert value("ckpt_path", ["--ckpt_path=x=y"]) == "x=y"
    assert value("ckpt_path", ["--ckpt_path", "x", "--ckpt_path=y", "--model.lr", "1"]) == "y"  # the last one counts
    assert value("ckpt_path", ["--ckpt_path=x", "--ckpt_path", "y"]) == "y"
    assert value("ckpt_path", ["--ckpt_paths", "x", "--model.ckpt_path=y"]) is None
    assert value("ckpt_path", [*files, "--ckpt_path", "x"]) == "x"  # above the files
    assert value("data.channels", ["--data.channels", "1"]) == 1  # as YAML has it
    for words in (["--ckpt_path"], ["--ckpt_path=", "--model.lr", "1"], ["--ckpt_path", "null"]):
        assert value("ckpt_path", words) is None  # never the next option


def test_a_value_from_the_files(files) -> None:
    assert value("ckpt_path", [*files, "--model.lr", "1"]) == "one.ckpt"
    assert value("trainer.default_root_dir", files) == "second"  # the later file, in a part
    assert value("trainer.default_root_dir", [*files[2:], *files[:2]]) == "first"
    assert value("trainer.default_root_dir", [*files, "-c", "one.yaml"]) == "first"
    assert value("trainer.default_root_dir", ["-c", "one.yaml", *files[2:]]) == "second"
    assert value("trainer.default_root_dir", [*files, "--trainer.default_root_dir=third"]) == "third"
    assert value("seed_everything", files) == 7
    assert value("nothing", files) is None and value("trainer.max_epochs.more", files) is None


def test_a_value_in_a_part_given_on_the_command_line(files) -> None:
    assert value("trainer.default_root_dir", ["--trainer", "deep/part/trainer.yaml"]) == "second"
    assert value("data.default_root_dir", ["--trainer", "deep/part/trainer.yaml"]) is None


def test_a_linked_key_in_a_part_is_named(cli, files) -> None:
    result = cli("fit", *files[2:])
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert "model.class_names follows the data: set data.class_names instead" in result.err


def test_config_files_that_cannot_be_read(workdir) -> None:
    (workdir / "open.yaml").write_text("a: 1\nb: [1,\n")
    (workdir / "tab.yaml").write_text("a:\n\t- 1\n")
    (workdir / "image.yaml").write_bytes(b"\xff\xfe\x00\x81")
    for name, words in (
        ("missing.yaml", "No such file"),
        (".", "cannot be read"),
        ("image.yaml", "not a text file"),
        ("open.yaml", "line 3"),
        ("tab.yaml", "line 2"),
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
    hyper["value_range"] = [0.0, 4095.0]
    return {"config": yaml.safe_dump(config), "hyper_parameters": hyper}


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_every_command_takes_its_part(command) -> None:
    found = checkpoint_config(checkpoint(), command)
    assert set(found) == (
        {"seed_everything", "trainer", "model", "data", "checkpoint"}
        if command == "fit"
        else {"model", "data", "trainer"}
    )
    assert found["model"] == {"lr": 0.5}
    # of a checkpoint of before there was `auto`; nothing else of the trainer, except to resume
    assert found["trainer"] == {"precision": "32-true"} | ({"max_epochs": 9} if command == "fit" else {})
    # the model's view of the data, not what was left open in the config
    assert found["data"] == {
        "root": None if command == "predict" else "/there",
        "image_size": 48,
        "class_names": ["a", "b"],
        "channels": 1,
        "resize": "crop",
        "value_range": [0.0, 4095.0],
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


def test_a_checkpoint_of_before_there_was_a_value_range_has_that_of_16_bits(saved) -> None:
    old = checkpoint()
    del old["hyper_parameters"]["value_range"]
    torch.save(old, saved)
    assert checkpoint_config(load_checkpoint(saved), "predict")["data"]["value_range"] == [0, 65535]


def test_arrange_puts_the_checkpoint_below_files_below_options(saved) -> None:
    words = ["--data.batch_size", "4", "--config", "x.yaml", "--ckpt_path=best", "--trainer", "t.yaml", "--model.lr=1"]
    Path("x.yaml").write_text("data: {batch_size: 2}\n")
    Path("t.yaml").write_text("max_epochs: 3")
    _, found, loaded = arrange(CORE["fit"], words, [])
    assert loaded.path.resolve() == saved and loaded.content["hyper_parameters"]["image_size"] == 48
    assert found[0] == "--config" and yaml.safe_load(found[1]) == checkpoint_config(checkpoint(), "fit")
    rest = ["--config=x.yaml", "--trainer=t.yaml", "--data.batch_size", "4", "--ckpt_path=best", "--model.lr=1"]
    assert found[2:-1] == rest
    assert found[-1] == f"--ckpt_path={loaded.path}"  # last, so it overrules the alias
    assert "\n" not in found[1].rstrip("\n")


@pytest.mark.parametrize("null", [[], ["--ckpt_path", "null"], ["--ckpt_path=null"]])
def test_without_a_checkpoint(saved, null) -> None:
    Path("x.yaml").write_text("model: {lr: 2}")
    _, words, loaded = arrange(CORE["fit"], ["--model.lr", "1", "-c", "x.yaml", *null], [])
    assert words == ["--config=x.yaml", "--model.lr", "1", *null] and loaded == Loaded()


@pytest.mark.parametrize("name", ["validate", "test", "predict"])
def test_other_commands_need_one(saved, name) -> None:
    with pytest.raises(UserError, match=f"{name} needs a trained model: --ckpt_path best"):
        arrange(CORE[name], ["--model.lr", "1"], [])
    for words in (["--help"], ["--data.root", "x", "-h"]):
        assert arrange(CORE[name], words, [])[1:] == (["--help"], Loaded())


def test_a_command_may_take_none(saved) -> None:
    def measure(config: dict, run_name: str, steps: int = 3) -> None:
        """Measure."""

    assert arrange(Command(measure, "config"), ["--ckpt_path=best"], [])[1:] == (["--ckpt_path=best"], Loaded())


def test_an_opener_takes_the_place_of_a_checkpoint(workdir) -> None:
    (workdir / "a.box").touch()
    hyper = {"class_names": ["a"], "image_size": 8, "in_channels": 1, "resize": "crop", "value_range": [0.0, 255.0]}
    content = {"hyper_parameters": hyper, "config": {"data": {"image_size": 8}, "model": {"path": "a.box"}}}
    opener = commands.Opener((".box",), ("predict",), lambda path: content, "somewhere.Model")
    _, words, loaded = arrange(CORE["predict"], ["--ckpt_path", "a.box"], [opener])
    config = {"classifier": "somewhere.Model", **content["config"]}
    assert loaded == Loaded(Path("a.box"), content, config, True) and yaml.safe_load(words[1]) == config
    for name, words, message in (
        ("test", [], "can only predict; test needs a checkpoint"),
        ("predict", ["--data.image_size=9"], "data.image_size belongs to the model"),
    ):
        with pytest.raises(UserError, match=message):
            arrange(CORE[name], ["--ckpt_path", "a.box", *words], [opener])


def test_the_checkpoint_may_be_named_in_a_file_and_the_runs_elsewhere(saved, workdir) -> None:
    (workdir / "runs").rename(workdir / "other")
    (workdir / "x.yaml").write_text("ckpt_path: best\ntrainer: {default_root_dir: other}\n")
    _, _, loaded = arrange(CORE["test"], ["--config", "x.yaml"], [])
    assert loaded.path == Path("other/a/version_0/checkpoints/best.ckpt")
    with pytest.raises(UserError, match="no run in nowhere"):
        arrange(CORE["test"], ["--config", "x.yaml", "--trainer.default_root_dir", "nowhere"], [])


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


@pytest.mark.slow
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
