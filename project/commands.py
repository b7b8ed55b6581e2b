"""What `python -m project` can do: the core's four commands, and those that the folders below project/extras state.

A command is a function: its typed, documented arguments are the options, its docstring is the help. Nothing heavy is
imported here.
"""

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from project.files import expand

if TYPE_CHECKING:
    import lightning as L

GIVEN = {"objects": 3, "config": 2, "nothing": 0}  # leading arguments that are not options

TRAINING_ONLY = (
    "checkpoint",
    "record",
    "machine.compile",
    "data.augment",
    "data.sampler",
    "data.random_resized_crop",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
)
_SPLIT = "source val_size test_size split_seed folds fold test_folds test_fold rare_classes"
SPLIT_ONLY = tuple(f"data.{name}" for name in _SPLIT.split())


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        function: What it does; returns the exit code, None for 0. With an argument `ckpt_path` it loads a checkpoint.
        needs: What it is called with before its options: `objects`, the configured trainer, model and data module;
            `config`, the settings of a fit as plain values and the name of its first file; `nothing`: it starts
            without torch.
        ignores: Options of a fit that would have no effect, with all below them; giving one is an error.
    """

    function: Callable[..., int | None]
    needs: Literal["objects", "config", "nothing"] = "objects"
    ignores: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def summary(self) -> str:
        return self.function.__doc__.partition("\n")[0]

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """Its own options by name, besides those of a fit."""
        return dict(list(inspect.signature(self.function).parameters.items())[GIVEN[self.needs] :])


@dataclass(frozen=True)
class Opener:
    """A kind of file that can take a checkpoint's place.

    Args:
        endings: Of its name, such as .onnx.
        commands: That can work with it.
        read: Gives what stands in for a checkpoint: `hyper_parameters` and `config`, with the parts data and model.
        model: Path of the LightningModule that works with it.
    """

    endings: tuple[str, ...]
    commands: tuple[str, ...]
    read: Callable[[Path], dict[str, Any]]
    model: str


def fit(
    trainer: "L.Trainer", model: "L.LightningModule", datamodule: "L.LightningDataModule", ckpt_path: str | None = None
) -> None:
    """Train, and validate after every epoch.

    Args:
        ckpt_path: Resume from this checkpoint: a path, or last or best of the newest run.
    """
    trainer.ckpt_path = ckpt_path  # as an argument of fit it would be known only after the model's setup
    trainer.fit(model, datamodule=datamodule)


def validate(
    trainer: "L.Trainer", model: "L.LightningModule", datamodule: "L.LightningDataModule", ckpt_path: str
) -> None:
    """Score a checkpoint on the validation images.

    Args:
        ckpt_path: The checkpoint: a path, or best or last of the newest run.
    """
    trainer.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)


def test(trainer: "L.Trainer", model: "L.LightningModule", datamodule: "L.LightningDataModule", ckpt_path: str) -> None:
    """Score a checkpoint on the test images, once everything has been chosen, and add the score to its run.

    Args:
        ckpt_path: The checkpoint: a path, or best or last of the newest run.
    """
    trainer.test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)


def predict(
    trainer: "L.Trainer",
    model: "L.LightningModule",
    datamodule: "L.LightningDataModule",
    ckpt_path: str,
    out: str = "predictions.csv",
    min_prob: float | None = None,
    all_probs: bool = False,
) -> None:
    """Predict the images of a folder, or of a CSV file's column path, and write them to a CSV file.

    Args:
        ckpt_path: The checkpoint: a path, or best or last of the newest run; or an exported file.
        out: The file to write: path, class, probability and the next four guesses of each image.
        min_prob: Below this probability the class is written as uncertain; above 0, at most 1; null never does.
        all_probs: Write the probabilities of all classes too, each in a column `probability of CLASS`.
    """
    from project.run.predictions import PredictionWriter

    trainer.callbacks.append(PredictionWriter(out, min_prob, all_probs))
    # An exported file has been opened by its own model: for it, ckpt_path is None here.
    trainer.predict(model, datamodule=datamodule, ckpt_path=ckpt_path, return_predictions=False)


CORE = [
    Command(fit),
    Command(validate, ignores=(*TRAINING_ONLY, "data.on_seen_image")),
    Command(test, ignores=TRAINING_ONLY),
    Command(predict, ignores=(*TRAINING_ONLY, *SPLIT_ONLY, "data.on_seen_image", "data.on_bad_image")),
]


def units(words: list[str]) -> list[list[str]]:
    """A command line as options, each with the values that follow it, ~ and $VAR written out."""
    found: list[list[str]] = []
    for word in words:
        if not found or re.match(r"-(?![\d.]+(e[+-]?\d+)?\Z)", word):  # a flag, not a negative number
            flag, joined, value = word.partition("=")
            found.append([flag + joined + expand(flag, value)])
        else:
            found[-1].append(expand(found[-1][0], word))
    return found


def find() -> tuple[dict[str, Command], list[Opener]]:
    """All commands by name, and what can be opened in place of a checkpoint."""
    commands, openers = list(CORE), []
    for file in sorted(Path(__file__).parent.glob("extras/*/command.py")):
        stated = importlib.import_module(f"project.extras.{file.parent.name}.command")
        commands += stated.COMMANDS
        openers += getattr(stated, "OPENERS", [])
    return {command.name: command for command in commands}, openers
