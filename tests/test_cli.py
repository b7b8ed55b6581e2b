"""The commands end to end, their order of precedence, and one-line errors."""

import csv
import json
import re
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import DIGITS, ROOT, SMALL, make_folder
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project.commands import CORE

FIT = ["fit", *DIGITS, *SMALL]


def config_of(run) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def events(run) -> EventAccumulator:
    accumulator = EventAccumulator(str(run))
    accumulator.Reload()
    return accumulator


def test_fit_says_and_keeps_what_a_person_wants_to_know(cli, workdir) -> None:
    result = cli(*FIT, "--trainer.max_epochs", "2")
    assert result.code == 0
    for line in (
        "10 classes",
        "train 1151, val 287, test 359",
        "shape: 1 x 8 x 8, batch 64",
        "optimizer  AdamW, for a batch of 64",
        "Validation accuracy",
    ):
        assert line in result.out
    assert re.search(r"^model      ConvNet: 5,178 parameters, 5,178 trainable at the start$", result.out, re.MULTILINE)
    assert re.search(
        r"^           group +parameters +lr +decay +trainable\n           all +5,178 +0.02 +0.01 +yes$",
        result.out,
        re.M,
    )
    rates = re.findall(
        r"^epoch ([12])/2  train/loss \S+  val/loss \S+  val/acc \S+  lr/all (\S+)  \S+ s$", result.out, re.M
    )
    assert [epoch for epoch, _ in rates] == ["1", "2"] and all(0 < float(rate) <= 0.02 for _, rate in rates)
    for command in ("project test --ckpt_path best", "project predict --ckpt_path best", "tensorboard --logdir runs"):
        assert command in result.out
    assert result.err == ""
    run = workdir / "runs" / "digits" / "version_0"
    names = {path.name.split(".")[0] for path in run.iterdir()}
    assert names == {"checkpoints", "config", "events", "groups", "metrics", "rates", "run", "split"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 < metrics["val/acc"] <= 1 and "test/acc" not in metrics
    record = json.loads((run / "run.json").read_text())
    assert record["split"]["train"] == 1151 and record["seed"] == 0 and record["versions"]["torch"]


def test_tensorboard_has_curves_rate_and_hparams(trained, cli) -> None:
    assert cli("test", "--ckpt_path", "best").code == 0
    scalars = events(trained).Tags()["scalars"]
    assert {
        "train/loss",
        "train/acc",
        "train/loss_step",
        "val/loss",
        "val/acc",
        "lr/all",
        "final/val/acc",
        "test/acc",
    } <= set(scalars)
    assert len(events(trained).Scalars("lr/all")) == 3  # every epoch
    plugin = {tag: data for event in [events(trained).summary_metadata] for tag, data in event.items()}
    assert "_hparams_/experiment" in plugin
    assert b"model.lr" in plugin["_hparams_/session_start_info"].plugin_data.content


def test_test_adds_its_result_beside_validation(trained, cli) -> None:
    result = cli("test", "--ckpt_path", "best")
    assert result.code == 0 and result.err == ""
    assert "validation" in result.out and "test" in result.out and "Test metric" not in result.out
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"val/acc", "test/acc", "test/f1_macro", "test/acc_class/7"} <= set(metrics)


def test_validate_repeats_the_figure_of_fit(trained, cli) -> None:
    best = json.loads((trained / "metrics.json").read_text())["val/acc"]
    for name in ("best", trained / "checkpoints" / "best.ckpt"):
        result = cli("validate", "--ckpt_path", name)
        assert result.code == 0 and f"{best:.2%}" in result.out


def test_predict_writes_names_and_top_five(trained, cli, workdir) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    (workdir / "new" / "deep").mkdir(parents=True)
    for i in range(10):
        Image.fromarray((digits.images[i] * 15.9375).astype("uint8")).save(workdir / "new" / "deep" / f"{i}.png")
    (workdir / "new" / "broken.jpg").write_bytes(b"no image")
    result = cli("predict", "--ckpt_path", "best", "--data.root", workdir / "new", "--out", "out.csv")
    assert result.code == 0 and "broken.jpg" in result.err and "10 predictions" in result.out
    rows = list(csv.DictReader((workdir / "out.csv").open()))
    assert [row["path"] for row in rows] == [f"deep/{i}.png" for i in range(10)]
    for row in rows:
        probabilities = [float(row["probability"]), *(float(row[f"probability_{n}"]) for n in range(2, 6))]
        assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1.00001
        assert len({row["class"], *(row[f"class_{n}"] for n in range(2, 6))}) == 5
    assert sum(int(row["class"]) == digits.target[i] for i, row in enumerate(rows)) >= 7


def test_predict_a_list_with_all_probabilities(trained, cli, workdir) -> None:
    (workdir / "new").mkdir()
    for i in range(3):
        Image.new("L", (9, 9), 80 * i).save(workdir / "new" / f"{i}.png")
    (workdir / "list.CSV").write_text(f"path\nnew/2.png\n{workdir / 'new' / '0.png'}\nnew/missing.png\n")
    predict = ("predict", "--ckpt_path", "best", "--data.root")
    result = cli(*predict, "list.CSV", "--all_probs", "--out", "out.csv")
    assert result.code == 0 and "2 predictions" in result.out
    assert result.err == "not predicted: new/missing.png: No such file or directory\n"
    rows = list(csv.DictReader((workdir / "out.csv").open()))
    assert cli(*predict, "new", "--out", "folder.csv").code == 0
    folder = {row["path"]: row for row in csv.DictReader((workdir / "folder.csv").open())}
    for row, name in zip(rows, ("0.png", "2.png"), strict=True):
        every = {
            key.removeprefix("probability of "): float(row[key]) for key in row if key.startswith("probability of")
        }
        assert len(every) == 10 and sum(every.values()) == pytest.approx(1, abs=1e-5)
        assert max(every, key=every.get) == row["class"] == folder[name]["class"]
        assert row["probability"] == folder[name]["probability"]
    result = cli(*predict, "nowhere.csv")
    assert result.code == 2 and result.err.count("\n") == 1 and "data.root nowhere.csv does not exist" in result.err


def test_own_folder_from_fit_to_predict(cli, folder, tiny_net, workdir) -> None:
    config = ["--config", ROOT / "configs" / "folder.yaml"]
    result = cli(
        "fit", *config, "--data.root", folder, *tiny_net, "--trainer.max_epochs", "4", "--data.batch_size", "16"
    )
    assert result.code == 0, result.err
    assert cli("test", "--ckpt_path", "best").code == 0
    metrics = json.loads((workdir / "runs" / "folder" / "version_0" / "metrics.json").read_text())
    assert metrics["test/acc"] == 1
    assert cli("predict", "--ckpt_path", "last", "--data.root", folder).code == 0
    rows = list(csv.DictReader((workdir / "predictions.csv").open()))
    assert len(rows) == 60 and all(row["class"] == row["path"].split("/")[0] for row in rows)


def test_checkpoint_is_plain_values(trained) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["class_names"] == [str(i) for i in range(10)]
    assert yaml.safe_load(checkpoint["config"])["model"]["lr"] > 0


def test_command_line_over_config_over_checkpoint_over_default(cli, trained, workdir) -> None:
    (workdir / "more.yaml").write_text("trainer: {max_epochs: 4, log_every_n_steps: 7}\ndata: {batch_size: 32}\n")
    # the option stands before the file, and still overrules it
    result = cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", "5", "--config", "more.yaml")
    assert result.code == 0, result.err
    config = config_of(trained)  # the resumed fit went on in the same version
    assert config["trainer"]["max_epochs"] == 5  # command line
    assert config["trainer"]["log_every_n_steps"] == 7 and config["data"]["batch_size"] == 32  # config
    assert config["model"]["net"]["init_args"]["channels"] == [16, 32]  # checkpoint
    assert config["trainer"]["min_epochs"] is None  # default
    assert sorted(path.name for path in (workdir / "runs" / "digits").iterdir()) == ["version_0"]


@pytest.mark.slow
def test_latest_is_moved_by_fit_alone(cli, trained, workdir) -> None:
    latest = workdir / "runs" / "latest"
    assert latest.read_text().strip() == "digits/version_0"
    for command in (
        ["test", "--ckpt_path", "best"],
        [*FIT, "--trainer.fast_dev_run", "1"],
        [*FIT, "--data.batch_size", "0"],
    ):
        cli(*command)
        assert latest.read_text().strip() == "digits/version_0"
    assert cli(*FIT, "--trainer.max_epochs", "1").code == 0
    assert latest.read_text().strip() == "digits/version_1"


def test_runs_can_be_moved(cli, trained, workdir) -> None:
    (workdir / "runs").rename(workdir / "elsewhere")
    assert cli("test", "--ckpt_path", "best", "--trainer.default_root_dir", "elsewhere").code == 0
    (workdir / "elsewhere" / "digits" / "version_0" / "checkpoints" / "best.ckpt").rename(workdir / "model.ckpt")
    assert cli("test", "--ckpt_path", "model.ckpt").code == 0


@pytest.mark.slow
def test_saved_config_runs_again(cli, trained, workdir) -> None:
    result = cli("fit", "--config", trained / "config.yaml", "--trainer.max_epochs", "1")
    assert result.code == 0, result.err
    assert (workdir / "runs" / "config" / "version_0" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*FIT, "--model.lrr", "1"], ["model.lrr", "did you mean model.lr?"]),
        ([*FIT, "--lr", "1"], ["lr", "did you mean model.lr?"]),
        ([*FIT, "--model.lr", "fast"], ["model.lr", "number", "fast"]),
        ([*FIT, "--model.lr=-1"], ["model.lr", "above 0"]),
        ([*FIT, "--trainer.max_epochs", "many"], ["trainer.max_epochs", "whole number", "many"]),
        ([*FIT, "--model.net", "project.nets.ConvNett"], ["model.net", "did you mean project.nets.ConvNet?"]),
        ([*FIT, "--model.net.init_args.chanels", "[8]"], ["model.net", "did you mean channels?"]),
        ([*FIT, "--model.optimizer.lr", "1"], ["model.optimizer", "model.lr is the one learning rate"]),
        ([*FIT, "--data.source", "project.data.Digit"], ["data.source", "did you mean project.data.Digits?"]),
        ([*FIT, "--data.root", "somewhere"], ["data.root", "no effect"]),
        ([*FIT, "--data.batch_size", "0"], ["data.batch_size", "above 0"]),
        ([*FIT, "--data.num_workers=-1"], ["data.num_workers"]),
        ([*FIT, "--data.resize", "stretch"], ["data.resize", "letterbox"]),
        ([*FIT, "--data.channels", "2"], ["data.channels", "one of 1, 3, 4"]),
        ([*FIT, "--data.image_size", "2"], ["image_size", "must be 4 or more"]),
        ([*FIT, "--data.random_resized_crop", "[0.5,2]"], ["data.random_resized_crop"]),
        ([*FIT, "--data.augment+=project.data.Saturation"], ["data.augment", "amount is missing"]),
        ([*FIT, "--model.mean", "[1,2,3]"], ["model.mean", "1 numbers"]),
        ([*FIT, "--model.task.label_smoothing", "1"], ["model.task.label_smoothing"]),
        ([*FIT, "--model.task.class_weights", "[1,2]"], ["model.task.class_weights", "10 numbers"]),
        (
            [*FIT, "--model.schedule=null", "--model.schedule_interval", "step"],
            ["model.schedule_interval", "leave it out"],
        ),
        ([*FIT, "--model.schedule_interval", "day"], ["model.schedule_interval", "not day"]),
        ([*FIT, "--model.task.class_weights", "balanced", "--data.sampler", "balanced"], ["twice", "choose one"]),
        ([*FIT, "--model.init", "kaiming"], ["model.init", "kaiming_normal"]),
        (["fit", "--config", "missing.yaml"], ["missing.yaml", "cannot be read"]),
        (["fit"], ["model.net is missing", "configs/digits.yaml"]),
        (["fit", *DIGITS, "--data", "missing.yaml"], ["data", "missing.yaml"]),
        (["fit", "--ckpt_path", "missing.ckpt"], ["ckpt_path", "missing.ckpt"]),
        (["test", "--ckpt_path", "last"], ["no run in runs", "project fit"]),
        (["test"], ["test needs a trained model", "--ckpt_path best"]),
        (["predict", "--ckpt_path"], ["--ckpt_path"]),
        (["train"], ["no command 'train'", "predict"]),
    ],
)
def test_errors_are_one_line_with_key_and_mend(cli, workdir, arguments, words) -> None:
    result = cli(*arguments)
    assert result.code == 2
    line = result.err.strip()
    assert line.startswith("error: ") and "\n" not in line and len(line) < 450
    for word in words:
        assert word in line
    assert not list(workdir.glob("runs/*/*/checkpoints/*"))


@pytest.mark.slow
def test_a_metric_that_is_never_logged_loses_nothing(cli, workdir) -> None:
    result = cli(*FIT, "--checkpoint.monitor", "val/accuracy", "--trainer.max_epochs", "2")
    assert result.code == 2 and "checkpoint.monitor" in result.err and "val/acc" in result.err
    assert cli("fit", "--ckpt_path", "last", "--checkpoint.monitor", "val/acc").code == 0


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--data.class_names", "[9,8,7,6,5,4,3,2,1,0]"], "data.class_names"),
        (["--data.image_size", "16"], "data.image_size belongs to the model"),
        (["--model.lr_mult", "{head: 3}"], "model.lr_mult"),
        (["--model.net", "project.nets.ResNet9"], "model.net"),
    ],
)
def test_a_trained_model_stays_what_it_is(cli, trained, option, words) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    for command in ("fit", "test", "validate"):
        result = cli(command, "--ckpt_path", "best", *option)
        assert result.code == 2 and words in result.err and len(result.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("test", ["--checkpoint.monitor", "val/loss"]),
        ("test", ["--data.augment", "null"]),
        ("validate", ["--trainer.max_epochs=3"]),
        ("predict", ["--data.source", "project.data.Digits"]),
        ("predict", ["--data.on_bad_image", "error"]),
    ],
)
def test_options_that_a_command_would_ignore(cli, trained, command, option) -> None:
    result = cli(command, "--ckpt_path", "best", *option)
    assert result.code == 2 and f"has no effect on {command}" in result.err


def test_early_stopping_by_an_unknown_metric_is_one_line(cli, workdir) -> None:
    stop = ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor", "val/lss"]
    result = cli(*FIT, "--trainer.max_epochs", "2", *stop)
    assert result.code == 2 and "val/lss" in result.err and len(result.err.splitlines()) == 1
    assert "there are train/acc" in result.err and "epoch 1/" not in result.out


def test_nothing_to_train_is_an_error(cli, trained) -> None:
    fewer = ("--trainer.max_epochs 1", "max_epochs=1")
    for options, words in (
        ("--trainer.max_epochs 0", "trainer.max_epochs and max_steps must be above 0"),
        ("--trainer.max_steps 0", "trainer.max_epochs and max_steps must be above 0"),
        ("--trainer.limit_train_batches 0", "trainer.limit_train_batches must be above 0"),
        ("--trainer.accelerator gpu", "trainer: No supported gpu backend"),
        fewer,
    ):
        if "gpu" in options and torch.cuda.is_available():
            continue
        result = cli("fit", "--ckpt_path", "last", *options.split())
        assert result.code == 2 and words in result.err and result.err.count("\n") == 1
        assert "Stopped" not in result.out


def test_a_batch_that_batch_norm_cannot_take(cli, workdir) -> None:
    """One image, and a feature map of one pixel."""
    net = ["--model.net", "project.nets.ResNet", "--model.net.init_args.depths", "[1,1,1,1]"]
    result = cli("fit", *DIGITS, *net, "--model.net.init_args.width", "4", "--data.batch_size", "1")
    assert result.code == 2 and result.err.count("\n") == 1 and "data.batch_size: batch norm" in result.err
    assert "epoch 1" not in result.out and not list(workdir.glob("runs/*/*/checkpoints/*"))


def test_going_on_at_the_end_says_so(cli, trained) -> None:
    result = cli("fit", "--ckpt_path", "last")
    assert result.code == 0 and "already at the end" in result.out


def test_augmentations_are_tried_before_training(cli, workdir) -> None:
    part = ROOT / "configs" / "data" / "augment_all.yaml"
    result = cli(*FIT, "--data", part)  # it has Saturation, and the digits are grey
    assert result.code == 2 and "data.augment: Saturation" in result.err and not (workdir / "runs").exists()


def test_bad_config_files(cli, workdir) -> None:
    for text, words in (
        ("model: {lrr: 1}", "did you mean model.lr?"),
        ("model: [", "not valid YAML"),
        ("model: {class_names: [a, b]}", "set data.class_names instead"),
        ("\x00\xff", "not valid YAML"),
    ):
        (workdir / "bad.yaml").write_text(text)
        result = cli(*FIT, "--config", "bad.yaml")
        assert result.code == 2 and words in result.err and len(result.err.splitlines()) == 1


def test_checkpoint_that_is_none(cli, workdir, trained) -> None:
    (workdir / "text.ckpt").write_text("hello")
    torch.save({"state_dict": {}}, workdir / "foreign.ckpt")
    whole = (trained / "checkpoints" / "best.ckpt").read_bytes()
    (workdir / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    for name, words in (
        ("text.ckpt", "not a checkpoint"),
        ("foreign.ckpt", "not written by"),
        ("half.ckpt", "damaged"),
    ):
        result = cli("test", "--ckpt_path", name)
        assert result.code == 2 and words in result.err and len(result.err.splitlines()) == 1


def test_predict_needs_a_folder_of_its_own(cli, trained, workdir) -> None:
    assert "data.root is not given" in cli("predict", "--ckpt_path", "best").err
    (workdir / "empty").mkdir()
    for root, words in (("nowhere", "nowhere does not exist"), ("empty", "no image in empty")):
        result = cli("predict", "--ckpt_path", "best", "--data.root", root)
        assert result.code == 2 and words in result.err
    make_folder(workdir / "some", {"red": 2})
    for out, words in (("some", "is a folder"), ("no/where.csv", "no folder")):
        result = cli("predict", "--ckpt_path", "best", "--data.root", "some", "--out", out)
        assert result.code == 2 and words in result.err


CSV = '{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}'
BOARD = '{"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "board"}}'


@pytest.mark.parametrize(
    ("logger", "files"), [("false", []), pytest.param(f"[{CSV}, {BOARD}]", ["board", "logs"], marks=pytest.mark.slow)]
)
def test_any_logger_or_none(cli, workdir, logger, files) -> None:
    result = cli(*FIT, "--trainer.max_epochs", "1", "--trainer.logger", logger)
    assert result.code == 0, result.err
    run = workdir / "runs" / "digits" / "version_0"
    assert (run / "metrics.json").is_file() and not list(run.glob("events*"))
    assert sorted(path.name for path in workdir.iterdir() if path.name != "runs") == files


@pytest.mark.slow
def test_no_checkpoints_when_switched_off(cli, workdir) -> None:
    result = cli(*FIT, "--trainer.max_epochs", "1", "--trainer.enable_checkpointing", "false")
    assert result.code == 0 and "project test" not in result.out
    assert not list(workdir.glob("runs/*/*/checkpoints/*"))


@pytest.mark.slow
def test_without_validation_the_last_epoch_counts(cli, workdir) -> None:
    result = cli(*FIT, "--trainer.max_epochs", "1", "--data.val_size", "0")
    assert result.code == 0 and "--ckpt_path last" in result.out
    assert cli("test", "--ckpt_path", "last").code == 0
    assert "of a run that was validated" in cli("test", "--ckpt_path", "best").err
    assert "val_size" in cli("validate", "--ckpt_path", "last").err


def test_help_lists_the_commands_and_starts_without_torch(workdir) -> None:
    program = "import sys; from project.__main__ import main; sys.exit(main(['--help']) or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == ""
    for command in CORE:
        assert re.search(rf"^  {command.name} +\S", done.stdout, re.MULTILINE)


def test_without_a_command_the_commands_are_listed(cli) -> None:
    result = cli()
    assert result.code == 2 and "usage: python -m project COMMAND" in result.out


def test_help_of_a_command_has_its_options_and_those_of_fit(cli) -> None:
    result = cli("predict", "--help")
    assert result.code == 0
    for words in (
        "--min_prob",
        "Below this probability",
        "--model.lr",
        "--data.batch_size",
        "The learning rate, for every optimizer",
    ):
        assert words in " ".join(result.out.split())
