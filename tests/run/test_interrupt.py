"""Ctrl-C between batches; a second one at once."""

import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from project.run.interrupt import SafeInterrupt


@pytest.fixture
def trainer() -> SimpleNamespace:
    return SimpleNamespace(world_size=1, validating=False)


@pytest.fixture
def callback(trainer):
    """A callback in force over Python's own handler; the handlers from before are restored in the end."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(signal.SIGTERM)
    some = SafeInterrupt()
    some.on_train_start(trainer, None)
    yield some
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def at_batch(last: bool = False, validates: bool = False, accumulated: int = 1) -> SimpleNamespace:
    loop = SimpleNamespace(_should_check_val_fx=lambda fetcher: validates)
    fit_loop = SimpleNamespace(epoch_loop=loop, _data_fetcher=None)
    return SimpleNamespace(is_last_batch=last, accumulate_grad_batches=accumulated, fit_loop=fit_loop)


def batch_end(callback: SafeInterrupt, last: bool = False) -> None:
    callback.on_train_batch_end(at_batch(last), None, None, None, 0)


def places(callback: SafeInterrupt):
    return [lambda: batch_end(callback), lambda: callback.on_train_epoch_start(None, None)]


def test_unasked_it_does_nothing(callback) -> None:
    for place in places(callback):
        place()


@pytest.mark.parametrize("place", range(2))
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SIGTERMException)])
def test_the_first_waits_for_the_next_place(callback, place, number, error) -> None:
    os.kill(os.getpid(), number)  # a real one; it must not raise here
    with pytest.raises(error):
        places(callback)[place]()


def test_a_validation_is_finished_and_said_to_be(callback, trainer, capsys) -> None:
    trainer.validating = True
    os.kill(os.getpid(), signal.SIGINT)
    assert "Stopping after this validation" in capsys.readouterr().out


def test_an_accumulation_is_not_torn_apart(callback) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    run = at_batch(accumulated=2)
    callback.on_train_batch_end(run, None, None, None, 0)
    with pytest.raises(SIGTERMException):
        callback.on_train_batch_end(run, None, None, None, 1)


def test_a_validation_within_the_epoch_is_not_left_out(callback) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    callback.on_train_batch_end(at_batch(validates=True), None, None, None, 0)
    with pytest.raises(SIGTERMException):
        callback.on_train_batch_end(at_batch(), None, None, None, 1)


def test_the_end_of_an_epoch_is_not_torn_apart(callback) -> None:
    callback._ask(signal.SIGINT, None)
    batch_end(callback, last=True)
    with pytest.raises(KeyboardInterrupt):
        callback.on_train_epoch_start(None, None)


def test_the_second_stops_at_once(callback) -> None:
    handler = signal.getsignal(signal.SIGINT)
    handler(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, None)


@pytest.mark.parametrize("options", [[], ["--data.test_size", "0", "--model.lr=-1"], ["--data.image_size", "2"]])
def test_after_a_command_the_handler_is_the_old_one(cli, folder, tiny_net, options) -> None:
    """Also after a command that failed."""

    def mine(number, frame) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGINT, mine)
    try:
        result = cli("fit", "--data.root", folder, *tiny_net, "--trainer.max_epochs", "1", *options)
        assert result.code == (2 if options else 0)
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_fit_that_is_stopped_restores_the_handler(cli, folder, tiny_net, monkeypatch, error) -> None:
    from project.classifier import ImageClassifier

    def fail(self, batch, batch_idx):
        raise error("out of memory")

    monkeypatch.setattr(ImageClassifier, "training_step", fail)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(error, match="out of memory") if error is RuntimeError else nullcontext():
            assert cli("fit", "--data.root", folder, *tiny_net, "--trainer.max_epochs", "1").code == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
