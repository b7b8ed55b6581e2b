"""The run as an object: its folder, its notes, its metrics; files are replaced whole."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from project.errors import UserError
from project.run.run import Run

TRAINER = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace(broadcast=lambda value: value))


@pytest.fixture
def run(tmp_path) -> Run:
    made = Run(tmp_path / "runs", "name", "{}")
    made.start(TRAINER)
    return made


def content(run: Run, name: str) -> dict:
    return json.loads((run.folder / name).read_text())


def test_a_folder_is_made_when_a_fit_starts(tmp_path) -> None:
    run = Run(tmp_path, "name", "{}")
    assert run.folder is None and run.checkpoints is None
    run.note(finished=True)  # has nowhere to go
    assert list(tmp_path.iterdir()) == []
    run.start(TRAINER)
    assert run.folder == tmp_path / "name" / "version_0" and run.checkpoints.is_dir()


def test_metrics_are_merged_and_a_new_training_drops_an_old_test(run) -> None:
    run.add_metrics({"val/acc": 0.5, "epoch": 3.0})
    run.add_metrics({"test/acc": 0.4})
    run.add_metrics({"test/acc": 0.45})
    assert content(run, "metrics.json") == {"val/acc": 0.5, "epoch": 3.0, "test/acc": 0.45}
    run.add_metrics({"val/acc": float("nan")})
    assert content(run, "metrics.json") == {"val/acc": None, "epoch": 3.0}


def test_notes_are_merged(run) -> None:
    run.note(seed=1, finished=False)
    run.note(finished=True)
    assert content(run, "run.json") == {"seed": 1, "finished": True}


def test_files_are_replaced_whole(run, monkeypatch) -> None:
    run.add_metrics({"val/acc": 0.5})
    real = Path.write_text

    def fail(self: Path, text: str, **options) -> int:
        real(self, text[:10], **options)
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(UserError, match="disk full"):
            run.add_metrics({"test/acc": 0.1})
    assert content(run, "metrics.json") == {"val/acc": 0.5}
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "metrics.json"]


def test_a_checkpoint_s_run_is_resumed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "a" / "version_3"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    run = Run(Path("other"), "b", "{}", folder / "checkpoints" / "best.ckpt")
    assert run.folder == Path("runs/a/version_3") and run.root == Path("runs") and run.checkpoints is None
    run.start(TRAINER)
    assert run.folder == Path("runs/a/version_3") and run.checkpoints == Path("runs/a/version_3/checkpoints")
    assert Run(Path("runs"), "b", "{}", tmp_path / "moved.ckpt").folder is None
