"""`python -m project search` with trials that do train, and everything that it refuses before the first one."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import DIGITS, ROOT
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import Namespace
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from project.extras.search.search_run import SearchRun, _Parse, difference, overlaid
from project.extras.search.space import read_space
from project.main import main
from project.run.record import flatten

TINY = [
    "--model.net.init_args.channels",
    "[4,8]",
    "--model.net.init_args.convs_per_block",
    "1",
    "--trainer.max_epochs",
    "2",
]
SPACE = """
model.optimizer: {choice: {sgd: {class_path: torch.optim.SGD, init_args: {momentum: 0.9}}, adamw: {class_path: torch.optim.AdamW}}}
model.optimizer.init_args.momentum: {float: [0.8, 0.99], when: {model.optimizer: sgd}}
model.lr: {log_float: [0.001, 0.1]}
data.augment: {choice: {none: null, crop: [{class_path: project.data.RandomCrop, init_args: {padding: 1}}]}}
"""
SEARCHED = list(yaml.safe_load(SPACE))
NAMES = st.sampled_from(["a", "b", "class_path"])
NESTED = st.recursive(
    st.dictionaries(NAMES, st.integers(0, 2)),
    lambda inner: st.dictionaries(NAMES, inner | st.integers(0, 2)),
    max_leaves=8,
)
slow = pytest.mark.skipif(not os.environ.get("CI_SLOW"), reason="slow: set CI_SLOW=1")


@pytest.fixture(scope="module")
def searched_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/search/digits: two trials, pruning off."""
    folder, before = tmp_path_factory.mktemp("searched"), Path.cwd()
    (folder / "space.yaml").write_text(SPACE)
    os.chdir(folder)
    try:
        assert main(["search", *DIGITS, *TINY, "--space", "space.yaml", "--trials", "2", "--pruner", "none"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def searched(searched_once: Path, workdir: Path) -> Path:
    shutil.copytree(searched_once, workdir, dirs_exist_ok=True)
    return workdir / "runs" / "search" / "digits"


def run_of(folder: Path, trial: int) -> Path:
    return next((folder / f"trial_{trial:04d}").glob("*/version_0"))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_trial_is_an_ordinary_run_and_none_is_the_latest(searched) -> None:
    for trial in (0, 1):
        run = run_of(searched, trial)
        assert (run / "checkpoints" / "best.ckpt").is_file() and (run / "split.csv").is_file()
        flat = flatten(yaml.safe_load((run / "config.yaml").read_text()))
        tried = flatten(yaml.safe_load((searched / f"trial_{trial:04d}" / "params.yaml").read_text()))
        assert {key: flat.get(key) for key in tried} == tried
        row = next(row for row in rows_of(searched) if row["trial"] == str(trial))
        searched_keys = [key for key in SEARCHED if row[key]]
        events = EventAccumulator(str(run)).Reload()
        assert events.Scalars("final/val/acc")[0].value == pytest.approx(
            json.loads((run / "metrics.json").read_text())["val/acc"]
        )
        hparams = events.PluginTagToContent("hparams")
        begun = HParamsPluginData.FromString(hparams["_hparams_/session_start_info"]).session_start_info.hparams
        assert sorted(begun) == sorted(searched_keys)  # nothing else, so that the parallel coordinates show these
        metrics = HParamsPluginData.FromString(hparams["_hparams_/experiment"]).experiment.metric_infos
        assert {metric.name.tag for metric in metrics} <= set(events.Tags()["scalars"])  # or it would be left out there
    assert not (searched.parent.parent / "latest").exists()


def test_the_table_has_the_scores_of_the_runs_best_epochs(searched) -> None:
    rows = rows_of(searched)
    assert [row["state"] for row in rows] == ["complete"] * 2
    assert float(rows[0]["val/acc"]) >= float(rows[1]["val/acc"])
    for row in rows:
        metrics = json.loads((run_of(searched, int(row["trial"])) / "metrics.json").read_text())
        assert float(row["val/acc"]) == pytest.approx(metrics["val/acc"]) and row["validations"] == "2"
    assert (searched / "history.png").read_bytes().startswith(b"\x89PNG")


def test_best_yaml_repeats_the_best_trial_exactly(searched, cli) -> None:
    best = int(rows_of(searched)[0]["trial"])
    result = cli("fit", *DIGITS, "--config", searched / "best.yaml")
    assert result.code == 0, result.err
    run, trial = Path("runs/digits/version_0"), run_of(searched, best)
    now, then = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (run, trial))
    assert now["trainer"].pop("default_root_dir") != then["trainer"].pop("default_root_dir")
    assert now == then
    assert json.loads((run / "metrics.json").read_text()) == json.loads((trial / "metrics.json").read_text())


def test_it_is_gone_on_with_only_when_asked_and_only_with_the_same_settings(searched, cli) -> None:
    again = ["search", *DIGITS, *TINY, "--space", "space.yaml", "--trials", "2", "--pruner", "none"]
    result = cli(*again)
    assert result.code == 2 and "--resume goes on with it" in result.err
    result = cli(*again, "--resume")
    assert result.code == 0 and "0 of 2 trials left" in result.out and "2 complete" in result.out
    result = cli(*again, "--resume", "--model.label_smoothing", "0.05")
    assert result.code == 2 and "fit: model.label_smoothing is 0.05, and was 0.1" in result.err
    Path("space.yaml").write_text(SPACE.replace("0.001, 0.1", "0.001, 0.2"))
    result = cli(*again, "--resume")
    line = "space: model.lr is {'log_float': [0.001, 0.2]}, and was {'log_float': [0.001, 0.1]}"
    assert result.code == 2 and line in result.err and result.err.count("\n") == 1


def test_the_best_is_trained_once_more_and_tested_on_request(searched, cli, monkeypatch) -> None:
    monkeypatch.setattr(SearchRun, "_process", lambda self, arguments: main(arguments))
    result = cli(
        "search", *DIGITS, *TINY, "--space", "space.yaml", "--trials", "2", "--pruner", "none", "--resume", "--test"
    )
    assert result.code == 0, result.err
    metrics = json.loads(Path("runs/digits/version_0/metrics.json").read_text())
    assert metrics["val/acc"] == pytest.approx(float(rows_of(searched)[0]["val/acc"])) and "test/acc" in metrics
    assert not any("test/acc" in json.loads(path.read_text()) for path in searched.rglob("metrics.json"))


@slow
def test_nested_evaluation_tests_each_outer_fold_once(workdir, cli, monkeypatch) -> None:
    monkeypatch.setattr(SearchRun, "_process", lambda self, arguments: main(arguments))
    Path("space.yaml").write_text("model.lr: {log_float: [0.001, 0.1]}")
    result = cli(
        "search",
        *DIGITS,
        *TINY,
        "--trainer.max_epochs",
        "1",
        "--space",
        "space.yaml",
        "--trials",
        "1",
        "--outer_folds",
        "2",
    )
    assert result.code == 0, result.err
    found = json.loads(Path("runs/search/digits/nested.json").read_text())
    tests: list[set[str]] = []
    for fold, row in enumerate(found["folds"]):
        folder = Path(f"runs/search/digits/outer_{fold}")
        run = next((folder / "best").glob("*/version_0"))
        assert row["outer"] == json.loads((run / "metrics.json").read_text())["test/acc"]
        assert (
            row["inner"] == pytest.approx(float(rows_of(folder)[0]["val/acc"]))
            and row["gap"] == row["inner"] - row["outer"]
        )
        parts = {name: set() for name in ("train", "val", "test")}
        for folder_of in (run, run_of(folder, 0)):  # the trials had the same split, in which the fold is set aside
            with (folder_of / "split.csv").open() as file:
                for image in csv.DictReader(file):
                    parts[image["split"]].add(image["path"])
        assert not parts["test"] & (parts["train"] | parts["val"]) and parts["val"]
        tests.append(parts["test"])
    assert not tests[0] & tests[1] and len(tests[0] | tests[1]) == 1797


@slow
def test_a_metric_that_is_never_logged_is_one_line_after_one_start(workdir, cli) -> None:
    Path("space.yaml").write_text("model.lr: {log_float: [0.001, 0.1]}")
    result = cli("search", *DIGITS, *TINY, "--space", "space.yaml", "--metric", "val/f2", "--trials", "5")
    assert result.code == 2 and result.err.count("\n") == 1 and "no metric 'val/f2' is logged; there are" in result.err
    assert len(list(Path("runs/search/digits").glob("trial_*"))) == 1


@slow
def test_without_a_completed_trial_it_says_so(workdir, cli) -> None:
    Path("space.yaml").write_text("model.lr: {choice: [.nan, -1.0]}")
    result = cli("search", *DIGITS, *TINY, "--space", "space.yaml", "--trials", "2")
    assert result.code == 1 and "no trial was completed: runs/search/digits/trials.csv has their errors" in result.out
    assert [row["state"] for row in rows_of(Path("runs/search/digits"))] == ["fail"] * 2 and not list(
        workdir.rglob("best.yaml")
    )


@slow
def test_ctrl_c_stops_a_training_in_good_order_and_resume_spends_what_is_left(workdir) -> None:
    Path("space.yaml").write_text("model.lr: {log_float: [0.001, 0.1]}")
    fit = [*DIGITS, *TINY, "--trainer.max_epochs", "60", "--space", "space.yaml", "--trials", "2", "--pruner", "none"]
    command = [sys.executable, "-m", "project", "search", *fit]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    log = Path("runs/search/digits/trial_0000/log.txt")
    end = time.monotonic() + 90
    while not (log.is_file() and "epoch 2/" in log.read_text()):
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "2 trials are left" in out
    assert list(log.parent.glob("*/version_0/checkpoints/last.ckpt")) and "SIGTERM" in log.read_text()
    assert subprocess.run([*command, "--resume"], env=environment, check=False).returncode == 0
    rows = rows_of(Path("runs/search/digits"))
    assert (
        len(rows) == 2
        and (log.parent.parent / "trial_0001" / "params.yaml").read_text() == (log.parent / "params.yaml").read_text()
    )


@slow
def test_a_sigterm_while_the_best_is_trained_again_ends_that_too(searched, workdir) -> None:
    own = ["--space", "space.yaml", "--trials", "2", "--pruner", "none", "--resume", "--test"]
    command = [sys.executable, "-m", "project", "search", *DIGITS, *TINY, *own]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not Path("runs/digits/version_0/config.yaml").is_file():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "the best trial was not tested: the same command with --resume" in out
    time.sleep(1)
    assert not subprocess.run(["pgrep", "-f", f"config {searched}/best.yaml"], capture_output=True, check=False).stdout


def test_a_fold_is_tested_again_when_the_search_has_found_another_best(workdir, monkeypatch) -> None:
    Path("space.yaml").write_text("model.lr: {log_float: [0.001, 0.1]}")
    own = {"metric": "val/acc", "mode": None, "name": "x", "sampler": "tpe", "pruner": "asha", "seed": 0}
    options = Namespace(**own, outer_folds=3, test=False)
    run = SearchRun(options, read_space(Path("space.yaml")), [*DIGITS], outer=1)
    run.folder.mkdir(parents=True)
    tested = iter([0.5, 0.75])
    monkeypatch.setattr(SearchRun, "_best_run", lambda self, root: (0, {"test/acc": next(tested)}))
    best = [SimpleNamespace(number=number, params={"model.lr": 0.01}) for number in (4, 7)]
    assert [run.outer_score(trial) for trial in (best[0], best[0], best[1], best[1])] == [(0, 0.5)] * 2 + [
        (0, 0.75)
    ] * 2
    assert run._setup()["fit"]["data.test_folds"] == 3  # so that a search with other folds is not gone on with


def test_the_trials_of_a_study_that_is_gone_are_not_taken_over(searched, cli) -> None:
    (searched / "study.db").unlink()
    result = cli("search", *DIGITS, *TINY, "--space", "space.yaml", "--trials", "2", "--pruner", "none")
    assert (
        result.code == 2 and "has trials of a search whose study is gone" in result.err and result.err.count("\n") == 1
    )


@pytest.mark.parametrize(
    "extra",
    [
        ["--data.batch_size", "32", "--model.label_smoothing", "0.05"],
        ["--model.net.dropout", "0.1"],  # the parser's short form, without init_args
        ["--model.optimizer.weight_decay", "0.2"],
        ["--trainer.callbacks+=project.run.EMA", "--trainer.callbacks.decay=0.9"],
        ["--data.augment", "null", "--trainer.default_root_dir", "elsewhere"],
        ["--model", str(ROOT / "configs/model/resnet18.yaml"), "--model.net.init_args.width", "8"],
        ["--model.schedule", "project.optim.Cosine", "--trainer.max_epochs", "3"],
    ],
)
@pytest.mark.parametrize("metric", ["val/acc", "val/loss"])
def test_best_yaml_holds_all_that_the_config_files_lack(extra, metric, workdir) -> None:
    Path("space.yaml").write_text("model.lr: {log_float: [0.001, 0.1]}")
    options = SimpleNamespace(metric=metric, mode=None, name="möde x", outer_folds=None, test=False)
    run = SearchRun(options, read_space(Path("space.yaml")), [*DIGITS, *extra])
    best = SimpleNamespace(number=3, params={"model.lr": 0.0123}, value=0.9)
    run.folder.mkdir(parents=True)
    (run.folder / "best.yaml").write_text(run._best_yaml(best))
    Path("params.yaml").write_text(yaml.safe_dump({**run.space.settings(best.params), **run.extra}))
    files = shlex.split(run._best_command())[4:]
    repeated = _Parse("fit", files).read(files, {})
    trial = [*DIGITS, *extra, "--config", "params.yaml"]
    wanted = _Parse("fit", trial).read(trial, {})
    for config in (repeated, wanted):
        config["trainer"].pop("default_root_dir")
    assert repeated == wanted and repeated["model"]["lr"] == 0.0123


@given(NESTED, NESTED)
def test_a_difference_laid_over_its_base_gives_what_was_wanted(base, changed) -> None:
    wanted = overlaid(base, changed)
    assert overlaid(base, difference(wanted, base)) == wanted
    assert difference(base, base) == {}


OPTIONS = ["--space", "space.yaml"]


@pytest.mark.parametrize(
    ("space", "arguments", "words"),
    [
        (
            "model.lrr: {float: [0, 1]}",
            OPTIONS,
            "error: space: model.lrr: there is no such key; did you mean model.lr?",
        ),
        ("model.lr: {log_float: [0, 1]}", OPTIONS, "must lie above 0"),
        (
            "model.class_names: {choice: [1, 2]}",
            OPTIONS,
            "model.class_names follows the data: search data.class_names instead",
        ),
        ("data.val_size: {float: [0.1, 0.3]}", OPTIONS, "data.val_size must be the same in every trial"),
        ("data.source.init_args.x: {float: [0.1, 0.3]}", OPTIONS, "must be the same in every trial"),
        ("trainer.limit_val_batches: {float: [0.1, 0.3]}", OPTIONS, "must be the same in every trial"),
        (
            "data: {choice: {a: {val_size: 0.1}, b: {batch_size: 64}}}",
            OPTIONS,
            "space: data.val_size must be the same in every trial",
        ),
        (
            "model.schedule: {choice: {none: null, cos: {class_path: project.optim.Cosine}}}\n"
            "model.schedule.init_args.final: {float: [0, 0.1]}",
            OPTIONS,
            "lies inside model.schedule, which can be null: give it a `when`",
        ),
        ("model.lr: {float: [0, 1]}\nmodel.lr.x: {float: [0, 1]}", OPTIONS, "model.lr.x lies inside model.lr"),
        ("model.lr: &a {choice: &b [*b, 1]}", OPTIONS, "refers to itself"),
        ("data.batch_size: {int: [1, 100000000000000000000]}", OPTIONS, "too large to count by ones"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--trainer.fast_dev_run", "true"], "no scores to compare"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--name", ".."], "name must be that of a folder below runs/search"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--name", "what?"], "a ? cannot be part of SQLite's address"),
        ("seed_everything: {int: [0, 9]}", OPTIONS, "must be the same in every trial"),
        ("model.optimizer: {choice: [torch.optim.AdamW, torch.optim.Adamm]}", OPTIONS, "= torch.optim.Adamm: "),
        ("model.net.init_args.chanels: {choice: [[1], [2]]}", OPTIONS, "did you mean channels?"),
        ("data.batch_size: {float: [1, 2.5]}", OPTIONS, "space: data.batch_size = 1.0: expected int. Got value: 1.0"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--model.lr", "0.1"], "would overrule the searched model.lr"),
        (
            "model.optimizer.init_args.lr: {float: [0, 1]}",
            [*OPTIONS, "--model.optimizer", "torch.optim.SGD"],
            "would overrule",
        ),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--ckpt_path", "best"], "a search begins every trial anew"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--checkpoint.monitor", "val/loss"], "give those instead"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--zzz", "1"], "zzz: there is no such key"),
        (
            "model.lr: {float: [0, 1]}",
            [*OPTIONS, "--trails", "1"],
            "trails: there is no such key; did you mean trials?",
        ),
        ("model.lr: {float: [0, 1]}", [], "search needs --space"),
        ("model.lr: {float: [0, 1]}", ["--space", "none.yaml"], "none.yaml cannot be read"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--trials", "0"], "trials must be 1 or more, not 0"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--trials", "many"], "trials: "),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--workers", "0"], "workers must be 1 or more"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--workers", "2", "--devices", "0,1"], "workers or devices, not both"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--devices", "0,,1"], "devices must be numbers of GPUs"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--outer_folds", "1"], "outer_folds must be 2 or more"),
        (
            "model.lr: {float: [0, 1]}",
            [*OPTIONS, "--outer_folds", "3", "--test"],
            "test has no effect with outer_folds",
        ),
        (
            "model.lr: {float: [0, 1]}",
            [*OPTIONS, "--outer_folds", "3", "--data.test_size", "0.3"],
            "no effect with outer_folds",
        ),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--timeout", "-1"], "timeout must be above 0"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--heartbeat", "0"], "heartbeat must be above 0"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--metric", "test/acc"], "metric must be one of validation"),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--pruner", "hyperband"], "pruner: "),
        ("model.lr: {float: [0, 1]}", [*OPTIONS, "--storage", "study.db"], "is no address"),
        (
            "model.lr: {float: [0, 1]}",
            [*OPTIONS, "--test", "--trainer.enable_checkpointing", "false"],
            "keeps no checkpoint",
        ),
    ],
)
def test_what_is_refused_before_the_first_trial(space, arguments, words, workdir, cli) -> None:
    Path("space.yaml").write_text(space)
    result = cli("search", *DIGITS, *arguments)
    assert result.code == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1
    assert words in result.err
    assert not list(workdir.glob("runs/search/*/trial_*"))


@pytest.mark.parametrize(("name", "config"), [("basic", "digits"), ("wide", "folder")])
def test_shipped_spaces_are_accepted_by_the_parser(name, config, workdir) -> None:
    fit = ["--config", str(ROOT / "configs" / f"{config}.yaml")]
    parse, space = _Parse("fit", fit), read_space(ROOT / "configs" / "search" / f"{name}.yaml")
    for key, value, values in space.candidates():
        settings = space.settings(values)
        resolved = parse.read(fit, settings)
        if "augment" in settings["data"]:  # a list, whose classes get their defaults
            chosen, got = (part["data"].pop("augment") or [] for part in (settings, resolved))
            assert [item["class_path"] for item in got] == [item["class_path"] for item in chosen]
        assert flatten(resolved).items() >= flatten(settings).items(), (key, value)


def test_help_lists_the_options(cli) -> None:
    result = cli("search", "--help")
    assert result.code == 0 and "--outer_folds" in result.out and "--heartbeat" in result.out


@slow
def test_two_tasks_of_the_cluster_script_share_one_budget(workdir) -> None:
    (workdir / "space.yaml").write_text("model.lr: {log_float: [0.001, 0.1]}")
    (workdir / "runs").mkdir()
    arguments = [*DIGITS, *TINY, "--space", "space.yaml", "--trials", "3", "--pruner", "none"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SLURM_SUBMIT_DIR": str(workdir),
        "PATH": path,
        "OMP_NUM_THREADS": "1",
    }
    script = ["bash", str(ROOT / "configs/search/slurm.sh"), *arguments]
    tasks = [subprocess.Popen(script, env=environment, cwd="/", stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [task.communicate(timeout=180)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], printed
    rows = rows_of(workdir / "runs" / "search" / "digits")
    assert [row["state"] for row in rows] == ["complete"] * 3 and len({row["model.lr"] for row in rows}) == 3
    assert (workdir / "runs" / "search.journal").is_file()
