"""`python -m project search`: what is refused before the first trial, and searches whose trials do train."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import DIGITS, ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from project.__main__ import main
from project.cli import parse
from project.errors import UserError
from project.extras.search import search as module
from project.extras.search.nested import nested
from project.extras.search.search import Search
from project.extras.search.space import read_space
from project.run.paths import flatten

TINY = ["--model.net.init_args.channels=[4,8]", "--model.net.init_args.convs_per_block=1", "--trainer.max_epochs=2"]
SPACE = """
model.optimizer:
  choice: {sgd: {class_path: torch.optim.SGD, init_args: {momentum: 0.9}}, adamw: {class_path: torch.optim.AdamW}}
model.optimizer.init_args.momentum: {float: [0.8, 0.99], when: {model.optimizer: sgd}}
model.lr: {log_float: [0.001, 0.1]}
data.augment: {choice: {none: null, crop: [{class_path: project.data.RandomCrop, init_args: {padding: 1}}]}}
"""
LR = "model.lr: {log_float: [0.001, 0.1]}"


@pytest.fixture(scope="session")
def config() -> dict:
    return parse([*DIGITS, *TINY])


@pytest.fixture
def search_of(config, workdir):
    """A search in the current folder, by the content of its space."""

    def make(space: str, **changes) -> Search:
        Path("space.yaml").write_text(space)
        options = {"config": config, "run_name": "digits", "name": "digits", "trials": 2, "storage": None}
        options |= {"resume": False, "slots": [{}], "sampler": "tpe", "pruner": "none", "metric": "val/acc"}
        options |= {"mode": "max", "seed": 0, "timeout": None, "heartbeat": 60.0}
        return Search(space=read_space(Path("space.yaml")), **{**options, **changes})

    return make


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("model.lrr: {float: [0, 1]}", "space: model.lrr = 0.0: lrr: there is no such key"),
        ("model.class_names: {choice: [1, 2]}", "model.class_names follows the data: set data.class_names"),
        ("model.optimizer: {choice: [torch.optim.AdamW, torch.optim.Adamm]}", "model.optimizer = torch.optim.Adamm: "),
        ("data.batch_size: {float: [1, 2.5]}", "space: data.batch_size = 2.5: "),
        ("data.val_size: {float: [0.1, 0.3]}", "data.val_size must be the same in every trial"),
        ("data: {choice: {a: {val_size: 0.1}, b: {batch_size: 64}}}", "data.val_size must be the same in every trial"),
        ("seed_everything: {int: [0, 9]}", "must be the same in every trial"),
    ],
)
def test_candidates_that_are_refused(space, words, search_of) -> None:
    with pytest.raises(UserError) as caught:
        search_of(space).check()
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"),
    [("basic", "digits"), ("folder", "folder"), pytest.param("wide", "folder", marks=pytest.mark.slow)],
)
def test_shipped_spaces_are_accepted(name, file, search_of) -> None:
    space = (ROOT / "configs" / "search" / f"{name}.yaml").read_text()
    search_of(space, config=parse(["--config", str(ROOT / "configs" / f"{file}.yaml")])).check()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trails", "1"], "trails: there is no such key; did you mean trials?"),
        (["--trials", "0"], "trials: "),
        (["--outer_folds", "3", "--test"], "takes the place of test"),
        (["--space", "none.yaml"], "none.yaml cannot be read"),
    ],
)
def test_options_that_are_refused(arguments, words, cli) -> None:
    Path("space.yaml").write_text(LR)
    result = cli("search", *DIGITS, "--space", "space.yaml", *arguments)
    assert result.code == 2 and result.err.count("\n") == 1 and words in result.err
    assert not list(Path().glob("runs/search/*/trial_*"))


def test_a_search_is_resumed_only_when_asked_and_with_the_same_settings(search_of) -> None:
    search = search_of(LR)
    search.folder.mkdir(parents=True)
    search._open()
    with pytest.raises(UserError, match="--resume continues it"):
        search._open()
    replace(search, resume=True)._open()
    elsewhere = {**search.config, "trainer": {**search.config["trainer"], "accelerator": "cpu", "devices": 1}}
    replace(search, resume=True, config=elsewhere)._open()
    with pytest.raises(UserError, match="metric is val/loss, and was val/acc"):
        replace(search, resume=True, metric="val/loss")._open()
    changed = {**search.config, "model": {**search.config["model"], "lr": 0.5}}
    with pytest.raises(UserError, match=r"fit\.model\.lr is 0\.5, and was 0\.\d+"):
        replace(search, resume=True, config=changed)._open()
    with pytest.raises(UserError, match=r"space\.model\.lr\.log_float is \[0\.001, 0\.2\], and was \[0\.001, 0\.1\]"):
        search_of(LR.replace("0.1]", "0.2]"), resume=True)._open()


def test_a_trial_and_best_yaml_mean_the_same_configuration(search_of, config) -> None:
    search = search_of(SPACE, metric="val/loss", mode="min")
    stopper = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/acc"}}
    search.config = {**config, "trainer": {**config["trainer"], "callbacks": [stopper]}}
    search.base.parent.mkdir(parents=True)
    search.base.write_text(yaml.safe_dump(search.config))
    trial = search._open().ask()
    _, command = search._start(trial)
    tried = parse(command[4:])
    for key, value in flatten(search.space.settings(trial.params)).items():
        assert key == "data.augment" or flatten(tried)[key] == value
    first, report = tried["trainer"].pop("callbacks")
    assert first["class_path"] == stopper["class_path"] and report["init_args"]["trial"] == trial.number
    assert tried.pop("record")["hparams"] == list(yaml.safe_load(SPACE))
    search._write_best(SimpleNamespace(number=0, value=0.5, params=trial.params))
    best = parse(search.best.read_text().splitlines()[1].split()[5:])
    best["trainer"].pop("callbacks"), best.pop("record")
    assert tried["trainer"].pop("default_root_dir") != best["trainer"].pop("default_root_dir")
    assert tried == best and best["checkpoint"] == {"monitor": "val/loss", "mode": "min"}


def test_the_best_is_trained_and_tested_and_a_failure_ends_it(search_of, monkeypatch) -> None:
    search, seen = search_of(LR), []
    codes = iter([(0, 0), (0, 0), (3, 0), (0, signal.SIGTERM)])
    monkeypatch.setattr(module, "run_to_the_end", lambda command: seen.append(command[3]) or next(codes))
    (search.root / "digits").mkdir(parents=True)
    (search.root / "latest").write_text("digits")
    (search.root / "digits" / "metrics.json").write_text('{"test/acc": 0.75}')
    assert search.test_best(search.root) == (0, {"test/acc": 0.75}) and seen == ["fit", "test"]
    assert search.test_best(search.root) == (3, {})
    assert search.test_best(search.root) == (143, {})


def test_nested_evaluation_searches_and_tests_every_fold(search_of, monkeypatch) -> None:
    ran = []

    def run(self: Search):
        ran.append((self.name, self.config["data"]["test_folds"], self.config["data"]["test_fold"]))
        self.folder.mkdir(parents=True)
        return 0, SimpleNamespace(value=0.9)

    monkeypatch.setattr(Search, "run", run)
    monkeypatch.setattr(Search, "test_best", lambda self, root: (0, {"test/acc": 0.8 - len(ran) / 10}))
    assert nested(search_of(LR), 2) == 0
    assert ran == [("digits/outer_0", 2, 0), ("digits/outer_1", 2, 1)]
    found = json.loads(Path("runs/search/digits/nested.json").read_text())
    assert found["gap"]["folds"] == pytest.approx([0.2, 0.3]) and found["outer"]["mean"] == pytest.approx(0.65)


def run_of(folder: Path, trial: int) -> Path:
    return next((folder / f"trial_{trial:04d}").glob("*/version_0"))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_trial_is_an_ordinary_run(workdir) -> None:
    Path("space.yaml").write_text(SPACE)
    assert main(["search", *DIGITS, *TINY, "--space", "space.yaml", "--trials", "1", "--metric", "val/loss"]) == 0
    folder = Path("runs/search/digits")
    run, (row,) = run_of(folder, 0), rows_of(folder)
    assert (run / "checkpoints" / "best.ckpt").is_file() and (run / "split.csv").is_file()
    metrics = json.loads((run / "metrics.json").read_text())
    assert row["state"] == "complete" and float(row["val/loss"]) == pytest.approx(metrics["val/loss"])
    assert row["validations"] == "2" and (folder / "history.png").is_file() and (folder / "best.yaml").is_file()
    events = EventAccumulator(str(run)).Reload()
    assert events.Scalars("final/val/loss")[0].value == pytest.approx(metrics["val/loss"])
    hparams = events.PluginTagToContent("hparams")
    begun = HParamsPluginData.FromString(hparams["_hparams_/session_start_info"]).session_start_info.hparams
    assert all(key.startswith(tuple(yaml.safe_load(SPACE))) for key in begun)  # so that the tab shows these alone
    infos = HParamsPluginData.FromString(hparams["_hparams_/experiment"]).experiment.metric_infos
    assert {info.name.tag for info in infos} <= set(events.Tags()["scalars"])  # or the trial would be left out there
    assert not Path("runs/latest").exists()  # best and last are never a trial


def run_search(*arguments: str, **popen) -> subprocess.Popen:
    command = [sys.executable, "-m", "project", "search", *DIGITS, *TINY, "--space", "space.yaml", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(log: Path, words: str) -> None:
    end = time.monotonic() + 180
    while not (log.is_file() and words in log.read_text()):
        assert time.monotonic() < end, words
        time.sleep(0.1)


@pytest.mark.slow
def test_best_yaml_repeats_the_best_trial_exactly_and_tests_it(workdir, cli) -> None:
    Path("space.yaml").write_text(SPACE)
    result = cli("search", *DIGITS, *TINY, "--space", "space.yaml", "--trials", "2", "--test")
    assert result.code == 0, result.err
    folder = Path("runs/search/digits")
    best = max(rows_of(folder), key=lambda row: float(row["val/acc"]))["trial"]
    then = json.loads((run_of(folder, int(best)) / "metrics.json").read_text())
    now = json.loads(Path("runs/digits/version_0/metrics.json").read_text())
    assert now.items() >= then.items() and "test/acc" in now and "test/acc" not in then


@pytest.mark.slow
def test_nested_evaluation_keeps_each_outer_fold_from_its_search(workdir, cli) -> None:
    Path("space.yaml").write_text(LR)
    own = ["--space", "space.yaml", "--trials", "1", "--outer_folds", "2", "--trainer.max_epochs", "1"]
    result = cli("search", *DIGITS, *TINY, *own)
    assert result.code == 0, result.err
    found = json.loads(Path("runs/search/digits/nested.json").read_text())
    tests: list[set[str]] = []
    for fold in range(2):
        folder = Path(f"runs/search/digits/outer_{fold}")
        run = next((folder / "best").glob("*/version_0"))
        assert found["outer"]["folds"][fold] == json.loads((run / "metrics.json").read_text())["test/acc"]
        assert found["inner"]["folds"][fold] == pytest.approx(float(rows_of(folder)[0]["val/acc"]))
        parts = {name: set() for name in ("train", "val", "test")}
        for folder_of in (run, run_of(folder, 0)):  # the trials had the same split, in which the fold is set aside
            with (folder_of / "split.csv").open() as file:
                for image in csv.DictReader(file):
                    parts[image["split"]].add(image["path"])
        assert not parts["test"] & (parts["train"] | parts["val"]) and parts["val"]
        tests.append(parts["test"])
    assert not tests[0] & tests[1] and len(tests[0] | tests[1]) == 1797


@pytest.mark.slow
def test_without_a_completed_trial_the_exit_code_is_1(workdir, cli) -> None:
    Path("space.yaml").write_text("model.lr: {choice: [.nan, -1.0]}")
    result = cli("search", *DIGITS, *TINY, "--space", "space.yaml", "--trials", "2")
    said = "no trial was completed; the first failed with: error: model.lr must be above 0, not "
    assert result.code == 1 and said in result.out and "runs/search/digits/trials.csv has them all" in result.out
    assert [row["state"] for row in rows_of(Path("runs/search/digits"))] == ["fail"] * 2
    assert not list(workdir.rglob("best.yaml"))


@pytest.mark.slow
def test_a_metric_that_is_never_logged_ends_the_search(workdir, cli) -> None:
    Path("space.yaml").write_text(LR)
    result = cli("search", *DIGITS, *TINY, "--space", "space.yaml", "--metric", "val/f2", "--trials", "5")
    assert result.code == 2 and "3 trials in a row failed alike" in result.err and "val/f2" in result.err


@pytest.mark.slow
def test_ctrl_c_stops_a_training_in_good_order_and_resume_spends_what_is_left(workdir) -> None:
    Path("space.yaml").write_text(LR)
    options = ["--trainer.max_epochs", "40", "--trials", "2"]
    process, log = run_search(*options), Path("runs/search/digits/trial_0000/log.txt")
    wait_for(log, "epoch 2/")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "2 trials are left" in out
    assert list(log.parent.glob("*/version_0/checkpoints/last.ckpt"))
    process = run_search(*options, "--resume")
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    folder = log.parent.parent
    assert [row["trial"] for row in rows_of(folder)] == ["1", "2"]
    again = [yaml.safe_load((folder / f"trial_000{i}" / "params.yaml").read_text())["model"] for i in range(2)]
    assert again[0] == again[1]


@pytest.mark.slow
def test_a_search_that_was_killed_is_resumed_and_its_orphan_stops(workdir) -> None:
    Path("space.yaml").write_text(LR)
    options = ["--trainer.max_epochs", "300", "--trials", "1", "--heartbeat", "1"]
    process, log = run_search(*options), Path("runs/search/digits/trial_0000/log.txt")
    wait_for(log, "epoch 2/")
    process.kill()
    process.communicate()
    process = run_search(*options, "--resume")
    wait_for(log.parent.parent / "trial_0001" / "log.txt", "epoch 1/")
    size = 0
    while log.stat().st_size != size:  # the first trial's process, which nobody waits for, has stopped
        size = log.stat().st_size
        time.sleep(3)
    assert "epoch 300/" not in log.read_text()
    process.terminate()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 143 and "trial 0  interrupted: it does not count" in out


@pytest.mark.slow
def test_two_tasks_of_the_cluster_script_share_one_budget(workdir) -> None:
    Path("space.yaml").write_text(LR)
    (workdir / "runs").mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PYTHONPATH": str(ROOT), "SLURM_SUBMIT_DIR": str(workdir), "PATH": path, "OMP_NUM_THREADS": "1"}
    script = ["bash", str(ROOT / "configs/search/slurm.sh"), *DIGITS, *TINY, "--space", "space.yaml", "--trials", "3"]
    tasks = [
        subprocess.Popen(script, env={**os.environ, **own}, cwd="/", stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [task.communicate(timeout=600)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], printed
    rows = rows_of(workdir / "runs" / "search" / "digits")
    assert len(rows) == 3 and len({row["model.lr"] for row in rows}) == 3
    assert (workdir / "runs" / "search.journal").is_file()
