"""The command line: LightningCLI with our order of precedence, one-line errors and a quiet start (card C5)."""

import functools
import importlib
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch._dynamo.exc import TorchDynamoException

from project import commands
from project.classifier import ImageClassifier
from project.commands import GIVEN, Command
from project.data import ImageDataModule
from project.errors import UserError
from project.messages import OneLineErrors, one_line, quiet, say
from project.run.audit import FreezeAudit
from project.run.checkpoints import BestAndLast
from project.run.interrupt import SafeInterrupt
from project.run.learning_curve import LearningCurve
from project.run.machine import Machine, Trainer, choose, work_of
from project.run.paths import flatten
from project.run.plan import RatePlan, check_callbacks, epochs_for
from project.run.record import RunRecord
from project.run.resume import ResumeChanges, check_changes
from project.run.run import Run
from project.run.seed import StepSeed
from project.run.switch import SwitchLine
from project.run.terminal import EpochLine, StartTable, TerminalBar
from project.settings import LINKS, Arguments, Loaded, arrange, checkpoint_config, load_checkpoint

DEFAULTS = {
    "default_root_dir": "runs",
    "use_distributed_sampler": False,  # our batches are shared out already, each image once
    "num_sanity_val_steps": 0,  # the images have been checked
    "enable_model_summary": False,  # the table at the start says it shorter
    "log_every_n_steps": 10,  # small data sets have few steps
}


class Parser(OneLineErrors, LightningArgumentParser):
    """Lightning's, with errors of one line."""


class CLI(LightningCLI):
    """One command: parse, build what it needs, call its function."""

    def __init__(self, command: Command, arguments: Arguments, words: list[str], loaded: Loaded) -> None:
        self.command, self.loaded = command, loaded
        self.run_name = next((path.stem for part, path in arguments.files if part == "config"), "fit")
        super().__init__(
            model_class=_model_class(arguments.value("classifier") or loaded.config.get("classifier")),
            datamodule_class=ImageDataModule,
            trainer_class=Trainer,
            parser_class=Parser,
            parser_kwargs={
                "allow_abbrev": False,
                "prog": f"python -m project {command.name}",
                "description": command.summary,
            },
            save_config_callback=None,  # the run's record has it
            seed_everything_default=0,
            trainer_defaults=DEFAULTS,
            auto_configure_optimizers=False,
            args=words,
            run=False,  # `perform` does
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for model, data in LINKS.items():
            parser.link_arguments(f"data.{data}", f"model.{model}", apply_on="instantiate")
        parser.add_class_arguments(BestAndLast, "checkpoint", skip={"run", "saves"}, instantiate=False)
        parser.add_class_arguments(RunRecord, "record", skip={"run", "tensorboard", "saved"}, instantiate=False)
        parser.add_class_arguments(Machine, "machine", skip={"work", "why"}, instantiate=False)
        parser.add_argument(
            "--classifier", type=str | None, help="Path of a subclass of ImageClassifier, in its place."
        )
        self.own = parser.add_function_arguments(self.command.function, skip={GIVEN[self.command.needs]})

    def plain(self) -> dict[str, Any]:
        """Every setting in force, as plain values."""
        return yaml.safe_load(self.parser.dump(self.config, skip_none=False))

    def _parse_ckpt_path(self) -> None:
        """Say what a trained model takes on, and refuse what it cannot any more; `arrange` has settled the order."""
        if self.loaded.path is not None and not self.loaded.opened:
            now, then = flatten(self.plain()["model"]), flatten(self.loaded.config["model"])
            for line in check_changes(self.command.name, now, then):
                say(line)

    def _set_seed(self) -> None:
        if self.command.needs == "config":
            return  # a training of its own has its own seed
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {error}") from error

    def instantiate_classes(self) -> None:
        _check_trainer(self.config["trainer"])
        if self.command.needs == "config":
            return
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise UserError(one_line(str(error), [])) from error
        check_callbacks(self.trainer.callbacks)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the callbacks that every command has."""
        config = self.config_init["trainer"]
        own_logger = config["logger"] in (None, True)
        work = work_of(self.model, self.datamodule.batch_size)
        config["precision"], why = choose(config, work)
        length = ""
        if self.command.name == "fit":
            images = len(self.datamodule.splits["train"])
            config["max_epochs"], length = epochs_for(config, images, self.datamodule.batch_size)
        for key in ("precision", "max_epochs"):
            self.config["trainer"][key] = config[key]  # what the run keeps
        run = self._run()
        saved = None
        if self.command.name == "fit":
            saved = BestAndLast(run, config["enable_checkpointing"] is not False, **self.config["checkpoint"])
        kwargs["enable_checkpointing"] = bool(saved)
        callbacks = [
            ResumeChanges(),
            RunRecord(run, own_logger, saved, **self.config["record"]),
            StartTable(length),
            Machine(work, why, **self.config["machine"]),
            EpochLine(),
            SafeInterrupt(),
            StepSeed(self.datamodule.seed),
            RatePlan(run),
            LearningCurve(run),
            SwitchLine(),
            FreezeAudit(),
            *([TerminalBar()] if config["enable_progress_bar"] is not False else []),
            *([saved] if saved else []),
        ]
        logger = False if own_logger else config["logger"]  # the record makes it, in the run's folder
        try:
            return self._instantiate_trainer({**config, **kwargs, "logger": logger}, callbacks)
        except (TypeError, MisconfigurationException) as error:  # Lightning's, for devices
            raise UserError(f"trainer: {error}") from error

    def _run(self) -> Run:
        """The run that is started, resumed or added to, with paths that work from anywhere."""
        config = {key: value for key, value in self.plain().items() if key not in self.own}
        if config["data"]["root"] is not None:
            config["data"]["root"] = os.path.abspath(config["data"]["root"])
        content = self.loaded.content
        return Run(
            Path(config["trainer"]["default_root_dir"]),
            self.run_name,
            yaml.safe_dump(config, sort_keys=False),
            self.loaded.path,
            content.get("global_step"),
            content.get("callbacks", {}).get("BestAndLast", {}).get("metrics") or {},
        )

    def perform(self) -> int:
        """Call the command's function; its exit code."""
        if self.command.needs == "config":
            config = self.plain()
            own = {name: config.pop(name) for name in self.own}
            return self.command.function(config, self.run_name, **own) or 0
        own = {name: self.config_init[name] for name in self.own}
        if self.loaded.opened:
            own["ckpt_path"] = None  # its model has opened it
        return self.command.function(self.trainer, self.model, self.datamodule, **own) or 0


class _ParserOnly(CLI):
    """Builds the parser, and nothing with it."""

    def _nothing(self, *_: Any) -> None: ...

    parse_arguments = _parse_ckpt_path = _set_seed = instantiate_classes = _nothing


def run_command(command: Command, words: list[str], openers: list[commands.Opener]) -> int:
    """Run one command that needs a configuration.

    Returns:
        The exit code: the command's own; 130 after Ctrl-C and 143 after SIGTERM, as shells have it.

    Raises:
        UserError: for what the user can fix.
    """
    quiet()
    try:
        return CLI(command, *arrange(command, words, openers)).perform()
    except MisconfigurationException as error:  # Lightning's word for a mistake of the user's
        raise UserError(str(error)) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        words = "of one image and a feature map of one pixel: raise it, or data.image_size, or use less pooling"
        raise UserError(f"data.batch_size: batch norm has nothing to average in a batch {words}") from error
    except TorchDynamoException as error:
        raise UserError(f"machine.compile: it fails on this network here; leave it out ({error!s:.200})") from error
    except SIGTERMException:
        return 143
    except SystemExit as error:  # Lightning's, after it has ended a run in good order
        return 130 if isinstance(error.__context__, KeyboardInterrupt) else int(error.code or 0)


def parse(words: list[str]) -> dict[str, Any]:
    """The configuration of a fit with these words after `fit`, as plain values; nothing is built.

    Raises:
        UserError: for what fit would refuse when it reads its settings.
    """
    cli = _parser_only()
    cli.config = cli.parser.parse_args(arrange(cli.command, words, [])[1])
    return cli.plain()


@functools.cache
def _parser_only() -> _ParserOnly:
    return _ParserOnly(commands.CORE[0], Arguments([], []), [], Loaded())


def build(kind: type, values: dict[str, Any]) -> Any:
    """A class as the command line would build it from plain values, or a UserError; of the trainer, its arguments."""
    parser = Parser(exit_on_error=False)
    parser.add_lightning_class_args(kind, "part")
    try:
        return parser.instantiate_classes(parser.parse_object({"part": values}))["part"]
    except ValueError as error:
        raise UserError(one_line(str(error), [])) from error


def load_trained(path: Path) -> tuple[ImageClassifier, ImageDataModule]:
    """A checkpoint's classifier, in eval mode on the fastest device, and its data module; no image is read.

    Raises:
        UserError: when it is not a checkpoint of ours, or cannot be built any more.
    """
    content = load_checkpoint(path)
    config = checkpoint_config(content, "validate")
    data = build(ImageDataModule, config["data"])
    model = _model_class(config.get("classifier")).load_from_checkpoint(path, "cpu", weights_only=True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), data


def _model_class(path: str | None) -> type[LightningModule]:
    """The classifier, or the class that is named in its place."""
    if path is None:
        return ImageClassifier
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"classifier: {path} cannot be imported ({error}); write the whole path of a class") from error


def _check_trainer(config: Any) -> None:
    """Refuse what Lightning would take and misunderstand."""
    clip, accumulated = config["gradient_clip_val"], config["accumulate_grad_batches"]
    for wrong, words in (
        (config["overfit_batches"], "overfit_batches has no effect: use --trainer.limit_train_batches"),
        (0 in (config["max_epochs"], config["max_steps"]), "max_epochs and max_steps must be above 0, to train at all"),
        (config["limit_train_batches"] == 0, "limit_train_batches must be above 0, to train at all"),
        (accumulated < 1, f"accumulate_grad_batches must be 1 or more, not {accumulated}"),
        (clip is not None and not clip > 0, f"gradient_clip_val must be above 0, not {clip}; null does not clip"),
        (config["gradient_clip_algorithm"] and clip is None, "gradient_clip_algorithm needs gradient_clip_val"),
    ):
        if wrong:
            raise UserError(f"trainer.{words}")
