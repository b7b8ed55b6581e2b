"""Which epoch becomes best.ckpt, and what goes into last.ckpt."""

import math
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import DIGITS, SMALL
from hypothesis import given, settings
from hypothesis import strategies as st

from project.errors import UserError
from project.run.checkpoints import BestAndLast


def saver(folder: Path | None = None, **named: str) -> BestAndLast:
    """It saves to a new folder, as in a run that has started."""
    return BestAndLast(SimpleNamespace(checkpoints=folder or Path(tempfile.mkdtemp())), **named)


class FakeTrainer:
    """What the callback uses of a trainer; a saved file says which epoch saved it."""

    def __init__(self) -> None:
        self.current_epoch, self.global_step, self.world_size, self.is_global_zero = 0, 0, 1, True
        self.callback_metrics: dict[str, torch.Tensor] = {}
        self.state, self.validating, self.callbacks = SimpleNamespace(fn="fit"), False, []
        self.max_steps, self.max_epochs, self.should_stop, self.enable_validation = -1, -1, False, False
        self.val_check_batch, self.fit_loop = None, SimpleNamespace(epoch_loop=SimpleNamespace(done=True))
        self.saved: list[tuple[str, int]] = []

    def save_checkpoint(self, path: Path) -> None:
        assert path.name.startswith(".") and ".part" in path.suffixes  # never over the old one
        path.write_text(f"epoch {self.current_epoch}")
        self.saved.append((path.name.split(".")[1], self.current_epoch))


def run(callback: BestAndLast, scores: list[float], start: int = 0, name: str = "val/acc") -> FakeTrainer:
    trainer = FakeTrainer()
    callback.on_train_start(trainer, None)
    for epoch, score in enumerate(scores, start):
        trainer.current_epoch, trainer.global_step = epoch, 10 * (epoch + 1)
        trainer.callback_metrics = {name: torch.tensor(score), "train/loss": torch.tensor(1.0)}
        if any(key.startswith("val/") for key in trainer.callback_metrics):
            callback.on_validation_end(trainer, None)
        callback.on_train_epoch_end(trainer, None)
        assert (callback.run.checkpoints / "last.ckpt").read_text() == f"epoch {epoch}"
    return trainer


def best_epochs(trainer: FakeTrainer) -> list[int]:
    return [epoch for name, epoch in trainer.saved if name == "best"]


@pytest.mark.parametrize(
    ("mode", "scores", "saved"),
    [
        ("max", [0.1, 0.3, 0.2, 0.4], [0, 1, 3]),
        ("min", [0.1, 0.3, 0.05, 0.4], [0, 2]),
        ("max", [0.5, 0.5, 0.4, 0.5], [0, 1, 3]),  # among equals the later one
        ("min", [0.5, 0.5, 0.4, 0.4], [0, 1, 2, 3]),
        ("max", [math.nan, 0.2, math.nan, 0.3], [0, 1, 3]),  # anything is better than no number
        ("min", [math.nan, math.nan, 0.2, math.nan], [0, 2]),
        ("max", [0.2, math.inf, 5.0], [0, 1]),
        ("max", [-math.inf, -1.0], [0, 1]),
    ],
)
def test_best_is_the_last_of_the_best(mode, scores, saved) -> None:
    callback = saver(mode=mode)
    trainer = run(callback, scores)
    assert best_epochs(trainer) == saved
    assert [epoch for name, epoch in trainer.saved if name == "last"] == list(range(len(scores)))
    assert callback.best_metrics["epoch"] == saved[-1]
    assert callback.best_score == callback.best_metrics["val/acc"] == pytest.approx(scores[saved[-1]], nan_ok=True)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.sampled_from(["max", "min"]))
def test_best_by_brute_force(scores, mode) -> None:
    values = [score / 8 for score in scores]
    best = max(values) if mode == "max" else min(values)
    assert best_epochs(run(saver(mode=mode), values))[-1] == max(i for i, value in enumerate(values) if value == best)


def test_best_is_saved_before_last_with_its_metrics() -> None:
    """Whatever was interrupted after it: last.ckpt then knows the best score, too."""
    callback = saver()
    assert [name for name, _ in run(callback, [0.1]).saved] == ["best", "last"]
    assert callback.state_dict()["best_metrics"] == {"epoch": 0.0, "val/acc": pytest.approx(0.1), "train/loss": 1.0}


def test_without_validation_there_is_no_best() -> None:
    callback = saver()
    assert [name for name, _ in run(callback, [1.0, 2.0], name="train/acc").saved] == ["last", "last"]
    assert callback.path("best") is None and callback.best_score is None


def test_an_unknown_monitor_names_those_there_are() -> None:
    with pytest.raises(UserError) as caught:
        run(saver(monitor="val/accuracy"), [0.1])
    text = str(caught.value)
    assert (
        "checkpoint.monitor" in text and "'val/accuracy'" in text and "train/loss, val/acc" in text and "\n" not in text
    )


def test_without_a_folder_nothing_is_saved(tmp_path) -> None:
    callback, trainer = BestAndLast(SimpleNamespace(checkpoints=None)), FakeTrainer()
    trainer.callback_metrics = {"val/acc": torch.tensor(0.5)}
    trainer.global_step = 4
    callback.on_train_epoch_end(trainer, None)
    callback.on_exception(trainer, None, KeyboardInterrupt())
    assert trainer.saved == [] and callback.path("best") is None


def test_paths(tmp_path) -> None:
    callback = saver(folder=tmp_path)
    assert callback.path("best") is None
    run(callback, [0.1])
    (tmp_path / "last.ckpt").unlink()
    assert callback.path("best") == tmp_path / "best.ckpt" and callback.path("last") is None


@pytest.mark.parametrize(
    ("monitor", "mode", "scores", "saved"),
    [
        ("val/acc", "max", [0.3, 0.6], [3]),  # 0.5 is to be reached
        ("val/acc", "min", [0.6, 0.5], [2, 3]),  # the comparison starts anew
        ("val/f1_macro", "max", [0.1, 0.2], [2, 3]),
    ],
)
def test_resumed(monitor, mode, scores, saved) -> None:
    before = saver()
    run(before, [0.2, 0.5])
    after = saver(monitor=monitor, mode=mode)
    after.load_state_dict(before.state_dict())
    assert best_epochs(run(after, scores, start=2, name=monitor)) == saved


def test_an_epoch_without_validation_is_never_the_best() -> None:
    callback = saver()
    trainer = run(callback, [0.1])
    trainer.current_epoch, trainer.global_step = 1, 20
    callback.on_train_epoch_end(trainer, None)  # with every second epoch validated, val/acc is still the one of before
    assert best_epochs(trainer) == [0] and "val/acc" not in callback.metrics


def test_a_failure_before_the_first_step_after_a_restore_saves_nothing() -> None:
    callback, trainer = saver(), FakeTrainer()
    trainer.global_step = 40
    callback.on_exception(trainer, None, RuntimeError())
    callback.on_train_start(trainer, None)
    callback.on_exception(trainer, None, RuntimeError())
    assert trainer.saved == []


def test_a_full_disk_leaves_the_checkpoint_of_before(monkeypatch) -> None:
    callback = saver()
    trainer = run(callback, [0.1])

    def fail(path: Path) -> None:
        path.write_text("ep")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "save_checkpoint", fail)
    trainer.current_epoch = 1
    with pytest.raises(UserError, match="No space left"):
        callback.on_train_epoch_end(trainer, None)
    assert {path.name: path.read_text() for path in callback.run.checkpoints.iterdir()} == {
        "best.ckpt": "epoch 0",
        "last.ckpt": "epoch 0",
    }


def test_less_of_a_loss_is_better() -> None:
    assert saver(monitor="val/loss").mode == "min" and saver("val/acc").mode == "max"


def test_interruptions_keep_what_is_new() -> None:
    callback = saver()
    trainer = run(callback, [0.1])
    assert callback.metrics
    callback.on_exception(trainer, None, KeyboardInterrupt())
    assert trainer.saved == [("best", 0), ("last", 0)]  # nothing learned since
    trainer.current_epoch, trainer.global_step = 1, 13
    for _ in range(2):
        callback.on_exception(trainer, None, KeyboardInterrupt())
        assert trainer.saved == [("best", 0), ("last", 0), ("last", 1)]
    assert callback.metrics == {}  # of weights that nobody has validated
    assert callback.best_metrics["epoch"] == 0


@pytest.mark.parametrize(
    ("attribute", "value"), [("global_step", 0), ("state", SimpleNamespace(fn="test")), ("world_size", 2)]
)
def test_interruptions_that_save_nothing(attribute, value) -> None:
    callback, trainer = saver(), FakeTrainer()
    trainer.global_step = 5
    setattr(trainer, attribute, value)
    callback.on_exception(trainer, None, RuntimeError())
    assert trainer.saved == []


@pytest.mark.parametrize(
    ("exception", "said"),
    [(KeyboardInterrupt(), True), (RuntimeError("boom"), True), (UserError("its own line says it all"), False)],
)
def test_last_words(capsys, tmp_path, exception, said) -> None:
    callback = saver(folder=tmp_path)
    callback.on_train_start(FakeTrainer(), None)
    callback.on_exception(FakeTrainer(), None, exception)
    assert capsys.readouterr().out == ""  # nothing was saved
    (tmp_path / "last.ckpt").touch()
    callback.on_exception(FakeTrainer(), None, exception)
    assert (f"Stopped. Saved {tmp_path / 'last.ckpt'}\nresume" in capsys.readouterr().out) == said


@pytest.mark.slow
def test_the_monitor_changes_when_a_run_is_resumed(cli, workdir) -> None:
    """Through the commands: by accuracy first, then by loss."""
    fit = ["fit", *DIGITS, *SMALL, "--trainer.limit_train_batches", "4"]
    assert cli(*fit, "--trainer.max_epochs", "1").code == 0
    change = ["--checkpoint.monitor", "val/loss", "--checkpoint.mode", "min"]
    result = cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", *change)
    assert result.code == 0 and "the best by val/loss" in result.out
    saved = torch.load("runs/digits/version_0/checkpoints/last.ckpt", weights_only=True)["callbacks"]["BestAndLast"]
    assert (saved["monitor"], saved["mode"]) == ("val/loss", "min")
    assert saved["best_score"] == saved["best_metrics"]["val/loss"] and saved["best_metrics"]["epoch"] == 1
