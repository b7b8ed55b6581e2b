"""Numbers of runs, the pointer to the latest, and what `best` and `last` mean."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from project.errors import UserError
from project.run.paths import find_checkpoint, latest_run, mark_latest, new_run, run_of


def message(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def make_run(root: Path, *checkpoints: str, name: str = "digits") -> Path:
    run = new_run(root, name)
    (run / "config.yaml").touch()
    (run / "checkpoints").mkdir()
    for checkpoint in checkpoints:
        (run / "checkpoints" / f"{checkpoint}.ckpt").touch()
    return run


def test_numbers_count_up_from_zero_for_each_name(tmp_path) -> None:
    root = tmp_path / "not" / "there" / "yet"
    assert [new_run(root, "a") for _ in range(3)] == [root / "a" / f"version_{n}" for n in range(3)]
    assert new_run(root, "b") == root / "b" / "version_0"
    assert all(path.is_dir() for path in root.glob("*/*"))


@pytest.mark.parametrize(
    ("there", "number"),
    [
        ([], 0),
        (["version_4"], 5),  # a gap below is not filled: the newest run has the highest number
        (["version_9", "version_10"], 11),  # as numbers, not as text
        (["version_x", "version_", "version_2_old", "other_7", "notes"], 0),
        (["version_007"], 8),
    ],
)
def test_what_is_there_already(tmp_path, there, number) -> None:
    for name in there:
        (tmp_path / "a" / name).mkdir(parents=True)
    assert new_run(tmp_path, "a").name == f"version_{number}"


def test_a_file_in_the_way_is_stepped_over(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "version_0").write_text("no folder")
    assert new_run(tmp_path, "a").name == "version_1"


def test_runs_that_start_at_once_are_distinct(tmp_path) -> None:
    together = threading.Barrier(8)

    def start(_: int) -> Path:
        together.wait()
        return new_run(tmp_path, "a")

    for times in range(1, 6):
        with ThreadPoolExecutor(8) as threads:
            runs = list(threads.map(start, range(8)))
        assert len(set(runs)) == 8
        assert len(list((tmp_path / "a").iterdir())) == 8 * times


def test_a_run_that_another_process_makes_in_between_is_not_taken(tmp_path, monkeypatch) -> None:
    real, taken = Path.mkdir, []

    def mkdir(self: Path, *arguments, **named) -> None:
        if self.name in ("version_0", "version_1") and self not in taken:  # the other one is faster, twice
            taken.append(self)
            real(self)
        real(self, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert new_run(tmp_path, "a").name == "version_2"
    assert [path.name for path in taken] == ["version_0", "version_1"]


# The pointer


def test_latest_is_relative_and_moves_with_the_runs(tmp_path) -> None:
    root = tmp_path / "runs"
    run = make_run(root)
    mark_latest(run)
    assert (root / "latest").read_text() == "digits/version_0\n"
    assert latest_run(root) == run
    root.rename(tmp_path / "moved")
    assert latest_run(tmp_path / "moved") == tmp_path / "moved" / "digits" / "version_0"


def test_latest_from_another_folder(tmp_path, monkeypatch) -> None:
    """A relative root, as the command line has it, means the same whatever the spelling."""
    monkeypatch.chdir(tmp_path)
    mark_latest(make_run(Path("runs")))
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert latest_run(Path("../runs")).resolve() == tmp_path / "runs" / "digits" / "version_0"
    mark_latest(make_run(Path("../runs")))
    assert (tmp_path / "runs" / "latest").read_text() == "digits/version_1\n"


def test_latest_is_replaced_and_nothing_is_left_over(tmp_path) -> None:
    for _ in range(3):
        run = make_run(tmp_path)
        mark_latest(run)
        assert latest_run(tmp_path) == run
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "latest"]


def test_no_run_and_a_run_that_is_gone(tmp_path) -> None:
    assert "no run" in message(latest_run, tmp_path) and "project fit" in message(latest_run, tmp_path)
    run = make_run(tmp_path)
    mark_latest(run)
    shutil.rmtree(run)
    assert str(run) in message(latest_run, tmp_path) and "--ckpt_path" in message(latest_run, tmp_path)


# Checkpoints


def test_best_and_last_of_the_latest_run(tmp_path) -> None:
    first, second = make_run(tmp_path, "best", "last"), make_run(tmp_path, "best", "last", name="other")
    for run in (first, second, first):
        mark_latest(run)
        for name in ("best", "last"):
            assert find_checkpoint(name, tmp_path) == run / "checkpoints" / f"{name}.ckpt"


def test_a_path_needs_no_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some.ckpt"
    path.touch()
    assert find_checkpoint(str(path), tmp_path / "nowhere") == path
    assert find_checkpoint("some.ckpt", tmp_path / "nowhere").resolve() == path
    (tmp_path / "best").touch()  # the alias is meant, not the file
    assert "no run" in message(find_checkpoint, "best", tmp_path / "nowhere")
    assert find_checkpoint("./best", tmp_path / "nowhere").resolve() == tmp_path / "best"


def test_checkpoints_that_are_not_there(tmp_path) -> None:
    for name in ("missing.ckpt", "Best", str(tmp_path)):  # a folder is no checkpoint
        text = message(find_checkpoint, name, tmp_path)
        assert "ckpt_path" in text and name in text and "give one, last, or best" in text
    run = make_run(tmp_path)
    mark_latest(run)
    for name in ("best", "last"):
        assert f"checkpoints/{name}.ckpt" in message(find_checkpoint, name, tmp_path)
    (run / "checkpoints" / "last.ckpt").touch()
    assert "of a run that was validated" in message(find_checkpoint, "best", tmp_path)
    assert find_checkpoint("last", tmp_path).name == "last.ckpt"


def test_run_of(tmp_path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    inside, outside = make_run(Path("runs"), "best"), make_run(tmp_path / "there", "best")
    assert run_of(inside / "checkpoints" / "best.ckpt") == Path("runs/digits/version_0")
    assert run_of(inside.absolute() / "checkpoints" / "best.ckpt") == Path("runs/digits/version_0")
    assert run_of(outside / "checkpoints" / "best.ckpt") == tmp_path / "there" / "digits" / "version_0"
    # moved out of its run, or a folder that only has the name
    assert run_of(tmp_path / "best.ckpt") is None
    assert run_of(inside / "best.ckpt") is None
    (inside / "config.yaml").unlink()
    assert run_of(inside / "checkpoints" / "best.ckpt") is None
