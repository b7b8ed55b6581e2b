"""The border between core and extras, and each extra deleted: the rest works, with no other file edited."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from house import COMMANDS, EXTRAS, belongings, extras_used, imported, present, with_dependents

PACKAGE = ROOT / "project"
CORE = [path for path in PACKAGE.rglob("*.py") if "extras" not in path.relative_to(PACKAGE).parts]
HERE = [extra for extra in EXTRAS if present(extra)]
SMOKE = [
    "tests/test_cli.py",
    "tests/test_readme.py",
    "tests/test_configs.py",
    "tests/test_house.py",
    "tests/run/test_seed.py",
]
OMP = {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}


def room(module: str) -> str:
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[:1] == ["extras"] else parts[0] if parts else ""


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_core_imports_no_extra(path) -> None:
    assert not [name for name in imported(path) if name.startswith("project.extras")]


def test_no_room_imports_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        arrows.setdefault(here, set()).update(room(name) for name in imported(path))
    arrows = {here: {there for there in below if there in arrows and there != here} for here, below in arrows.items()}
    left = dict(arrows)
    while free := [here for here, below in left.items() if not below & left.keys()]:
        for here in free:
            del left[here]
    assert not left, f"these import one another: {sorted(left)}"


@pytest.mark.parametrize("extra", HERE)
def test_an_extra_is_found_by_its_name(extra) -> None:
    paths = {path.relative_to(ROOT).as_posix() for path in belongings(extra)}
    assert {f"project/extras/{extra}", f"tests/extras/{extra}", f"docs/{extra}.md"} <= paths
    for other in (path for path in HERE if path not in with_dependents(extra)):
        assert extra not in extras_used(ROOT / "tests" / "extras" / other)


def test_no_file_outside_of_an_extra_imports_it() -> None:
    assert not extras_used(ROOT / "project") - {name for extra in HERE for name in with_dependents(extra)}
    own = [path for extra in HERE for path in belongings(extra)]
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        if not any(path.is_relative_to(folder) for folder in own):
            assert not [name for name in imported(path) if name.startswith("project.extras.")], path


def copy_without(gone: set[str], target: Path) -> Path:
    """The files that git knows, less what belongs to some extras."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    left_out = [path for extra in gone for path in belongings(extra)]
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and not any(path.is_relative_to(folder) for folder in left_out):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / name)
    return target


def run(folder: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | OMP
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="no extra is left to delete")
def test_without_any_extra_it_trains(tmp_path) -> None:
    folder = copy_without(set(EXTRAS), tmp_path)
    assert not any(f"\n  {command} " in run(folder, "project", "--help") for command in COMMANDS)
    options = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    run(folder, "project", "fit", "--config", "configs/digits.yaml", *options)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs/digits/version_0"))
    events.Reload()
    assert {"train/loss", "val/loss", "val/acc", "lr/all", "final/val/acc"} <= set(events.Tags()["scalars"])
    assert b"model.lr" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.content


@pytest.mark.slow
@pytest.mark.parametrize("extra", HERE)
def test_without_one_extra_the_rest_works(extra, tmp_path) -> None:
    folder = copy_without(with_dependents(extra), tmp_path)
    text = run(folder, "project", "--help")
    for command, owner in COMMANDS.items():
        assert (f"\n  {command} " in text) == (owner not in with_dependents(extra) and present(owner))
    run(folder, "project", "fit", "--config", "configs/digits.yaml", "--trainer.max_epochs", "1")
    quiet = ["-q", "-x", "-W", "ignore", "-p", "no:cacheprovider"]
    run(folder, "pytest", *quiet, *SMOKE, "--deselect", "tests/test_house.py::test_without_any_extra_it_trains")
    run(folder, "pytest", *quiet, "--collect-only", "-m", "")  # nothing that is left imports what is gone
