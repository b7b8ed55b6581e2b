"""One search over the fits of a configuration: checks before the first trial, the trials, what is written after."""

import math
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.exceptions import DuplicatedStudyError
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from project.cli import parse
from project.errors import UserError
from project.extras.child import run_to_the_end
from project.extras.search.budget import Budget
from project.extras.search.space import Space
from project.extras.search.storage import open_storage, storage_errors
from project.extras.search.summary import conclude
from project.extras.search.worker import Worker
from project.files import written_whole
from project.run.paths import flatten, latest_run, read

FIXED = (  # keys that must be the same in every trial, or scores could not be compared, or that are set here
    *("data.source", "data.class_names", "data.seed", "data.val_size", "data.test_", "data.split_seed", "data.fold"),
    "data.rare_classes",
    *("trainer.limit_val_batches", "trainer.default_root_dir", "trainer.logger", "trainer.callbacks"),
    *("checkpoint", "record", "seed_everything"),
)
PLACE = (  # what may change when a search is resumed, or differ between its workers
    *("fit.data.root", "fit.data.num_workers", "fit.data.cache", "fit.trainer.accelerator", "fit.trainer.devices"),
    *("fit.trainer.default_root_dir", "fit.trainer.num_nodes"),
)
PYTHON = (sys.executable, "-m", "project")


@dataclass
class Search:
    """One search: for the whole command, or for one outer fold.

    Attributes:
        config: The configuration of a fit, as plain values.
        run_name: Name of that configuration, for the folders of its runs.
        name: Of the search.
        space: What is searched.
        slots: For each trial at a time, what its environment has besides ours.
        mode: max or min.
        trials, storage, resume, sampler, pruner, metric, seed, timeout, heartbeat: As the command has them.
    """

    config: dict[str, Any]
    run_name: str
    name: str
    space: Space
    trials: int
    storage: str | None
    resume: bool
    slots: list[dict[str, str]]
    sampler: str
    pruner: str
    metric: str
    mode: str
    seed: int
    timeout: float | None
    heartbeat: float

    def __post_init__(self) -> None:
        self.root = Path(self.config["trainer"]["default_root_dir"] or "runs")
        self.folder = self.root / "search" / self.name
        self.base = self.folder / "base" / f"{self.run_name}.yaml"  # runs are named after their config
        self.best = self.folder / "best.yaml"
        self.keys = [parameter.key for parameter in self.space.parameters]
        lite = f"sqlite:///{self.folder.absolute()}/study.db?timeout=20"  # seconds, while another process writes
        self.address = self.storage or lite

    def check(self) -> None:
        """Parse every choice and both ends of every range as fit would: a bad one is found before the first trial."""
        with tempfile.TemporaryDirectory() as place:
            base, candidate = Path(place, "base.yaml"), Path(place, "candidate.yaml")
            base.write_text(yaml.safe_dump(self.config))
            for key, value, values in self.space.candidates():
                settings = self.space.settings(values)
                if fixed := [leaf for leaf in (key, *flatten(settings)) if leaf.startswith(FIXED)]:
                    raise UserError(f"space: {fixed[0]} must be the same in every trial: set it in the config")
                candidate.write_text(yaml.safe_dump(settings))
                try:
                    parse(["--config", str(base), "--config", str(candidate)])
                except UserError as error:
                    raise UserError(f"space: {key} = {value}: {error}") from error

    def run(self) -> tuple[int, FrozenTrial | None]:
        """Search, and say what was found; the exit code, and the best trial once the budget is spent."""
        self.check()
        self.base.parent.mkdir(parents=True, exist_ok=True)
        with storage_errors():
            study = self._open()
            with written_whole(self.base) as draft:
                draft.write_text(yaml.safe_dump(self.config, sort_keys=False))
            seed = self.seed + 1_000_003 * len(study.trials)  # other draws after every resumption
            study.sampler = RandomSampler(seed)
            if self.sampler == "tpe":  # in groups, because conditions divide the space
                study.sampler = TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
            if self.storage:
                study.sampler.reseed_rng()  # and in every one of several processes
            budget = Budget(study, self.trials, self.heartbeat)
            print(f"search {self.name}: {budget.left()} of {self.trials} trials left, in {self.folder}", flush=True)
            end = time.monotonic() + (self.timeout or math.inf)
            stopped = Worker(budget, self._start, self.metric, self.mode, end).run(self.slots)
            found = conclude(study, self.folder, self.keys, self.metric)
            left = budget.left()
        if found is not None:
            self._write_best(found)
        if left:
            print(f"{left} trials are left: the same command with --resume continues", flush=True)
            return stopped and 128 + stopped, None
        if found is None:
            print(f"no trial was completed: {self.folder / 'trials.csv'} has their errors", flush=True)
        return int(found is None), found

    def _open(self) -> optuna.Study:
        """The study, new or begun with the same settings."""
        try:
            study = optuna.create_study(
                storage=open_storage(self.address),
                study_name=self.name,
                direction=f"{self.mode}imize",
                load_if_exists=bool(self.resume or self.storage),
            )
        except DuplicatedStudyError as error:
            words = "--resume continues it, --name starts another"
            raise UserError(f"name: there is a search {self.name} already: {words}") from error
        setup = flatten({"metric": self.metric, "mode": self.mode, "space": self.space.content, "fit": self.config})
        setup = {key: value for key, value in setup.items() if not key.startswith(PLACE)}
        known = study.user_attrs.get("setup", setup)
        for key in {**setup, **known}:
            if setup.get(key) != known.get(key):
                words = f"{key} is {setup.get(key)}, and was {known.get(key)}; --name starts another"
                raise UserError(f"the search {self.name} was started with other settings: {words}")
        study.set_user_attr("setup", setup)
        return study

    def _start(self, trial: optuna.Trial) -> tuple[Path, list[str]]:
        """Choose the values of a trial: its folder, and the command of its fit."""
        settings = self._settings(self.space.suggest(trial))
        arguments = {"storage": self.address, "study": self.name, "trial": trial.number}
        arguments |= {"metric": self.metric, "pruner": self.pruner}
        report = {"class_path": "project.extras.search.report_trial.ReportTrial", "init_args": arguments}
        callbacks = self.config["trainer"]["callbacks"] or []
        settings["record"] = {"hparams": self.keys, "scores": [self.metric, "val/acc", "val/loss"]}
        settings.setdefault("trainer", {})["callbacks"] = [*callbacks, report]
        folder = self.folder / f"trial_{trial.number:04d}"
        folder.mkdir()
        (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        command = [*PYTHON, "fit", *self._configs(folder / "params.yaml")]
        return folder, [*command, "--trainer.default_root_dir", str(folder)]

    def _settings(self, values: dict[str, Any]) -> dict[str, Any]:
        """What is laid over the base; best.ckpt is to be the epoch that made the score."""
        return {**self.space.settings(values), "checkpoint": {"monitor": self.metric, "mode": self.mode}}

    def _configs(self, top: Path) -> list[str]:
        return ["--config", str(self.base), "--config", str(top)]

    def _write_best(self, best: FrozenTrial) -> None:
        command = shlex.join(["python", "-m", "project", "fit", *self._configs(self.best)])
        head = f"# Trial {best.number} of the search {self.name}: {self.metric} {best.value:.4f} in its best epoch.\n"
        with written_whole(self.best) as draft:
            draft.write_text(f"{head}#     {command}\n{yaml.safe_dump(self._settings(best.params), sort_keys=False)}")
        print(f"best        trial {best.number}: {command}", flush=True)

    def test_best(self, root: Path) -> tuple[int, dict[str, Any]]:
        """Train the best once more, as an ordinary run below root, and test it; exit code, and metrics of the run."""
        for command in (["fit", "--trainer.enable_checkpointing", "true"], ["test", "--ckpt_path", "best"]):
            place = ["--trainer.default_root_dir", str(root)]
            code, stopped = run_to_the_end([*PYTHON, *command, *self._configs(self.best), *place])
            if code or stopped:
                print("the best trial was not tested: the same command with --resume does it", flush=True)
                return code or 128 + stopped, {}
        return 0, read(latest_run(root) / "metrics.json")
