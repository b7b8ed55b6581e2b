"""The command line: LightningCLI with our order of precedence, one-line errors and a quiet start (card C5)."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import yaml
from lightning import LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from project.changes import check_changes
from project.classifier import ImageClassifier
from project.data import ImageDataModule
from project.errors import UserError
from project.extras.search.report_trial import ReportTrial, this_trial
from project.messages import one_line
from project.parser import OneLineParser
from project.run.audit import FreezeAudit
from project.run.checkpoints import BestAndLast
from project.run.interrupt import SafeInterrupt
from project.run.learning_curve import LearningCurve
from project.run.paths import flatten
from project.run.plan import RatePlan
from project.run.record import RunFolder
from project.run.seed import StepSeed
from project.run.switch import SwitchLine
from project.run.terminal import EpochLine, StartTable, TerminalBar
from project.settings import arrange, config_files, given, split_arguments
from project.trainer import Trainer

LINKS = {  # the data says these, the model follows; a key of the model that is linked cannot be given
    "data.class_names": "model.class_names",
    "data.image_size": "model.image_size",
    "data.channels": "model.in_channels",
    "data.resize": "model.resize",
}
OTHERS = (
    "Also, each with its own --help: search (the best settings), report (runs as one page), verify (an exported file)."
)


class CLI(LightningCLI):
    """`python -m project fit|validate|test|predict|export|check|lr_find|batch_find`; main.py has the rest."""

    code = 0  # the exit code of a command that ran to its end

    def __init__(self, command: str | None, arguments: list[str]) -> None:
        self.checkpoint_path: Path | None = None
        self.checkpoint: dict[str, Any] = {}
        self.run_name = run_name(arguments)
        for source, target in LINKS.items():
            if path := given(target, arguments):
                raise UserError(f"{target} follows the data: set {source} instead (in {path})")
        if command is not None:
            arguments, self.checkpoint_path, self.checkpoint = arrange(command, arguments)
            arguments = [command, *arguments]
        super().__init__(
            model_class=_model_class(self.checkpoint),
            datamodule_class=ImageDataModule,
            trainer_class=Trainer,
            parser_class=OneLineParser,
            parser_kwargs={"allow_abbrev": False, "epilog": OTHERS},
            save_config_callback=None,  # the run folder saves it
            seed_everything_default=0,
            trainer_defaults={
                "default_root_dir": "runs",
                "use_distributed_sampler": False,  # our batches are shared out already, each image once
                "num_sanity_val_steps": 0,  # the images have been checked
                "enable_model_summary": False,  # the table at the start says it shorter
                "log_every_n_steps": 10,  # small data sets have few steps
            },
            auto_configure_optimizers=False,
            args=arguments,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, each a method of the trainer, with those of its arguments that are no options."""
        own = ("export", "check", "lr_find", "batch_find")
        return LightningCLI.subcommands() | {name: {"model", "datamodule"} for name in own}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for source, target in LINKS.items():
            parser.link_arguments(source, target, apply_on="instantiate")
        parser.add_lightning_class_args(BestAndLast, "checkpoint")

    def _parse_ckpt_path(self) -> None:
        """Say what a trained model takes on, and refuse what it cannot any more.

        Lightning would let the checkpoint overrule both in silence; `arrange` has put it below config and command line instead.
        """
        if "config" not in self.checkpoint:  # none, or an exported file
            return
        command = self.config["subcommand"]
        now = yaml.safe_load(self._parser(command).dump(self.config[command], skip_none=False))["model"]
        then = yaml.safe_load(self.checkpoint["config"])["model"]
        for line in check_changes(command, flatten(now), flatten(then)):
            say(line)

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {error}") from error

    def instantiate_classes(self) -> None:
        if self.subcommand == "check":
            self._check_trainer(self.config["check"]["trainer"])
            return  # it builds the parts itself, and reports what cannot be built
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise UserError(one_line(str(error), [])) from error

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand != "check":
            super()._run_subcommand(subcommand)
            return
        from project.extras.check.check import check  # here, because training needs none of it

        config = yaml.safe_load(self._parser(subcommand).dump(self.config[subcommand], skip_none=False))
        out = Path(config["out"] or Path(config["trainer"]["default_root_dir"], "check", self.run_name))
        self.code = check(config, out, config["images"], config["steps"], config["compare_init"])

    @staticmethod
    def _check_trainer(config: Any) -> None:
        if config["overfit_batches"]:
            raise UserError(
                "trainer.overfit_batches is not supported: use --trainer.limit_train_batches and --data.augment null"
            )
        if config["accumulate_grad_batches"] < 1:
            raise UserError(
                f"trainer.accumulate_grad_batches must be 1 or more, not {config['accumulate_grad_batches']}"
            )
        if config["gradient_clip_val"] is not None and not config["gradient_clip_val"] > 0:
            raise UserError(
                f"trainer.gradient_clip_val must be above 0, not {config['gradient_clip_val']}; null does not clip"
            )
        if config["gradient_clip_algorithm"] and config["gradient_clip_val"] is None:
            raise UserError(
                "trainer.gradient_clip_algorithm has an effect with trainer.gradient_clip_val only; leave it out"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the callbacks that every command has."""
        config = self.config_init[self.subcommand]["trainer"]
        self._check_trainer(config)
        own_logger, trial = config["logger"] in (None, True), this_trial()
        callbacks = [
            RunFolder(
                config["default_root_dir"],
                self.run_name,
                self._full_config(),
                own_logger,
                self.checkpoint_path,
                self.checkpoint.get("callbacks", {}).get("BestAndLast", {}).get("metrics"),
                trial,
            ),
            StartTable(),
            EpochLine(),
            SafeInterrupt(),
            StepSeed(self.datamodule.seed),
            RatePlan(),
            LearningCurve(),
            SwitchLine(),
            FreezeAudit(),
        ]
        if config["enable_progress_bar"] is not False:
            callbacks.append(TerminalBar())
        if trial is not None:  # of a search, which wants to know how it goes
            callbacks.append(ReportTrial(trial))
        trainer_config = {**config, **kwargs, "logger": False if own_logger else config["logger"]}
        if self.subcommand == "fit" and config["enable_checkpointing"] is not False:
            callbacks.append(self.config_init[self.subcommand]["checkpoint"])
        else:
            trainer_config["enable_checkpointing"] = False
        trainer = self._instantiate_trainer(trainer_config, callbacks)
        trainer.resumed_step = self.checkpoint.get("global_step")
        trainer.exported = "exported" in self.checkpoint
        return trainer

    def _full_config(self) -> str:
        """Every setting in force, as YAML that fit can read again; paths made absolute, so that it works from anywhere."""
        config = yaml.safe_load(self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False))
        config.pop("ckpt_path", None)
        if config["data"]["root"] is not None:
            config["data"]["root"] = os.path.abspath(os.path.expanduser(config["data"]["root"]))
        return yaml.safe_dump(config, sort_keys=False)


def _model_class(checkpoint: dict[str, Any]) -> type[LightningModule]:
    """The classifier, or what takes its place for an exported file."""
    if "exported" not in checkpoint:
        return ImageClassifier
    from project.extras.export.exported import ExportedClassifier  # here, because training needs none of it

    return ExportedClassifier


def run_name(arguments: list[str]) -> str:
    """The name of the first config file without its ending; `fit` when there is none."""
    paths = config_files(split_arguments(arguments)[0])
    return paths[0].stem if paths else "fit"


def quiet() -> None:
    """Silence what the user cannot act on; warnings of the user's own code still show."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*It is recommended to use `self.log\\(.*sync_dist=True.*",
        ".*LightningCLI's args parameter is intended.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*Total length of `list` across ranks is zero.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*The `srun` command is available on your system but is not used.*",
        ".*Encountered `nan` values in tensor.*",  # the learning curve says so
        ".*``compute`` method of metric .* was called before the ``update`` method.*",  # resumed between epoch and checkpoint
    ):
        warnings.filterwarnings("ignore", message=message)


def say(line: str) -> None:
    """One line, from the first of several processes only."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(line, flush=True)
