"""One search over the fits of a configuration: checks before the first trial, the loop, what is written after (advice A1)."""

import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from project.cli import CLI, LINKS, run_name
from project.errors import UserError
from project.extras.search.space import Space, leaves
from project.files import written_whole
from project.run.child import run_to_the_end
from project.run.paths import CHECKPOINTS, latest_run, read
from project.run.record import flatten
from project.settings import arrange, option, split_arguments

FIXED = (  # what every trial must have in common, or is none of its business
    *("trainer.limit_val_batches", "trainer.overfit_batches"),
    *(f"data.{name}" for name in ("root", "source", "class_names", "seed", "on_bad_image", "on_seen_image")),
    *(f"data.{name}" for name in ("val_size", "test_size", "split_seed", "folds", "fold", "test_folds", "test_fold")),
    *(
        "checkpoint",
        "ckpt_path",
        "seed_everything",
        "trainer.default_root_dir",
        "trainer.logger",
        "trainer.fast_dev_run",
    ),
)
PLACE = (  # what may differ between the workers of one search
    *(
        "data.root",
        "data.num_workers",
        "data.cache",
        "trainer.accelerator",
        "trainer.devices",
        "trainer.default_root_dir",
    ),
    *("trainer.enable_progress_bar", "trainer.num_nodes"),
)
MACHINE = (
    "--trainer.accelerator",
    "--trainer.devices",
    "--trainer.precision",
)  # options of fit that test takes as well
BEST = "best.yaml"


class _Parse(CLI):
    """The command line of fit up to its configuration: nothing is built, nothing is run."""

    def _nothing(self, *_: Any, **__: Any) -> None: ...

    _set_seed = _parse_ckpt_path = before_instantiate_classes = instantiate_classes = _run_subcommand = _nothing

    def read(self, arguments: list[str], settings: dict[str, Any]) -> dict[str, Any]:
        """The whole configuration of a fit with these settings on top of its files."""
        inline = (
            ["--config", yaml.safe_dump(settings, default_flow_style=True, width=1_000_000_000)] if settings else []
        )
        arranged, _, _ = arrange("fit", arguments)
        files, options = split_arguments(arranged)
        self.parse_arguments(self.parser, ["fit", *files, *inline, *options])
        return yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_none=False))


def difference(wanted: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """What has to be laid over one configuration to make it another; a list, or another class, comes whole."""
    found: dict[str, Any] = {}
    for key, value in wanted.items():
        then = base.get(key)
        if isinstance(value, dict) and isinstance(then, dict) and value.get("class_path") == then.get("class_path"):
            found |= {key: inner} if (inner := difference(value, then)) else {}
        elif value != then:
            found[key] = value
    return found


def overlaid(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """One configuration laid over another; a class given by its path alone makes room for its arguments."""
    result = dict(base)
    for key, value in top.items():
        then = result.get(key)
        if isinstance(value, dict) and isinstance(then, (dict, str)):
            result[key] = overlaid({"class_path": then} if isinstance(then, str) else then, value)
        else:
            result[key] = value
    return result


class SearchRun:
    """One search: for the whole command, or for one outer fold."""

    def __init__(self, options: Any, space: Space, fit: list[str], outer: int | None = None) -> None:
        self.options, self.space, self.fit = options, space, list(fit)
        self.maximise = (options.mode or ("min" if options.metric.endswith("loss") else "max")) == "max"
        if outer is not None:
            self.fit += [f"--data.test_folds={options.outer_folds}", f"--data.test_fold={outer}"]
        files, single = split_arguments(fit)
        self._check_options(files, single)
        self._parse = _Parse("fit", self.fit)
        base = self._parse.read(self.fit, {})
        self.root = Path(base["trainer"]["default_root_dir"] or "runs").expanduser()
        self.name = options.name or run_name(fit)
        if outer is not None:
            self.name = f"{self.name}/outer_{outer}"
        self.folder = self.root / "search" / self.name
        # best.ckpt of a trial is to be the epoch that made its score.
        monitor = {"monitor": options.metric, "mode": "max" if self.maximise else "min"}
        self.extra = {} if monitor == {"monitor": "val/acc", "mode": "max"} else {"checkpoint": monitor}
        self.trainer = base["trainer"]
        if base["trainer"]["enable_checkpointing"] is False and (options.test or outer is not None):
            raise UserError(
                "trainer.enable_checkpointing false keeps no checkpoint, which test and outer_folds need; leave it out"
            )
        if base["trainer"]["fast_dev_run"]:
            raise UserError("trainer.fast_dev_run has no scores to compare: leave it out")
        self._base = flatten(base)

    def _check_options(self, files: list[str], single: list[str]) -> None:
        if option("ckpt_path", files, single) not in (None, "null"):
            raise UserError(
                "ckpt_path: a search begins every trial anew; leave it out, or give model.weights to begin from"
            )
        for parameter in self.space.parameters:
            key = parameter.key
            if key in LINKS.values():
                source = next(data for data, model in LINKS.items() if model == key)
                raise UserError(f"space: {key} follows the data: search {source} instead")
            for argument in single:
                flag = argument.split("=", 1)[0].removeprefix("--").rstrip("+")
                if argument.startswith("--") and (
                    flag == key or key.startswith(f"{flag}.") or flag.startswith(f"{key}.")
                ):
                    raise UserError(
                        f"{flag} is given on the command line, which would overrule the searched {key}; leave one out"
                    )
        for argument in single:
            if argument.startswith("--checkpoint"):
                raise UserError(
                    "checkpoint: a search keeps the epoch that is best by --metric and --mode; give those instead"
                )

    def check_candidates(self) -> None:
        """Parse every choice and both ends of every range as fit would: a bad one is found before the first trial."""
        for key, value, values in self.space.candidates():
            settings = self.space.settings(values)
            for leaf in leaves(settings):
                if any(leaf == fixed or leaf.startswith(f"{fixed}.") for fixed in FIXED):
                    raise UserError(
                        f"space: {leaf} must be the same in every trial, or scores could not be compared; set it in the config"
                    )
            try:
                self._parse.read(self.fit, {**settings, **self.extra})
            except UserError as error:
                words = str(error).removeprefix("config: ")
                of = key if words.startswith(f"{key}: there is no such key") else f"{key} = {value}"
                raise UserError(f"space: {of}: {words.removeprefix(f'{key}: ')}") from error

    def run(self) -> tuple[int, Any]:
        """Search, and say what was found; the exit code, 1 when no trial was completed, and the best trial of a spent budget."""
        from project.extras.search.pruner import make_pruner, planned_validations
        from project.extras.search.sampler import Seeded
        from project.extras.search.search import Search, share_of_cores
        from project.extras.search.study import Study
        from project.extras.search.summary import direction

        options = self.options
        self.check_candidates()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"name: {self.folder} cannot be made ({error.strerror})") from error
        if options.storage is None and "?" in str(self.folder.absolute()):
            raise UserError(f"{self.folder.absolute()}: a ? cannot be part of SQLite's address; choose another folder")
        storage = options.storage or f"sqlite:///{(self.folder / 'study.db').absolute()}"
        sampler = Seeded(options.sampler, options.seed)
        pruner = make_pruner(options.pruner, planned_validations(self.trainer))
        study = Study(storage, self.name, direction(self.maximise), sampler, pruner, options.heartbeat)
        if study.new and any(self.folder.glob("trial_*")):
            raise UserError(
                f"{self.folder} has trials of a search whose study is gone: remove it, or choose another --name"
            )
        study.begin(self._setup(), options.trials, options.resume or options.storage is not None)
        slots = [share_of_cores(options.workers) for _ in range(options.workers)]
        if options.devices is not None:
            slots = [{"CUDA_VISIBLE_DEVICES": device.strip()} for device in options.devices.split(",")]
        left = max(0, study.left())
        print(
            f"search {self.name}: {left} of {options.trials} trials left, {len(slots)} at a time, in {self.folder}",
            flush=True,
        )
        loop = Search(
            study,
            self.space,
            self.folder,
            self._trial,
            options.metric,
            self.maximise,
            self.extra,
            slots,
            options.timeout,
        )
        stopped = loop.run()
        best = self._conclude(study.trials())
        left = study.left()
        if left > 0:
            print(f"{left} trials are left: the same command with --resume goes on", flush=True)
        if stopped or left > 0:
            return 128 + stopped if stopped else 0, None
        if best is None:
            print(f"no trial was completed: {self.folder / 'trials.csv'} has their errors", flush=True)
            return 1, None
        if options.test:
            return self._best_run(self.root)[0], best
        return 0, best

    def _setup(self) -> dict[str, Any]:
        """What must be the same when a search is gone on with."""
        options = self.options
        fit = {
            key: value
            for key, value in self._base.items()
            if not any(key == p or key.startswith(f"{p}.") for p in PLACE)
        }
        own = {key: options[key] for key in ("metric", "sampler", "pruner", "seed")}
        return json.loads(json.dumps({**own, "maximise": self.maximise, "space": self.space.spec(), "fit": fit}))

    def _trial(self, folder: Path) -> list[str]:
        """The fit of one trial: an ordinary run below its folder, so that `best` and `last` go on to mean what they meant."""
        place = f"--trainer.default_root_dir={folder}"
        return [sys.executable, "-m", "project", "fit", *self.fit, "--config", str(folder / "params.yaml"), place]

    def _conclude(self, trials: list[Any]) -> Any:
        """Write and print what is known so far; the best trial, or None."""
        from project.extras.search import summary

        keys, metric = self.space.keys, self.options.metric
        best = summary.best_trial(trials, self.maximise)
        shares = summary.importances(trials, keys, self.maximise)
        summary.write_csv(self.folder / "trials.csv", trials, keys, metric, self.maximise)
        pictures = summary.write_pictures(self.folder, trials, shares, metric, self.maximise)
        print("\n" + "\n".join(summary.table(trials, keys, metric, self.maximise)))
        if shares:
            print(
                "importance  "
                + "  ".join(f"{name} {shares[key]:.2f}" for key, name in summary.short_keys(list(shares)).items())
            )
        if best is not None:
            with written_whole(self.folder / BEST) as draft:
                draft.write_text(self._best_yaml(best))
            print(f"best        trial {best.number}: {self._best_command()}")
        print(f"pictures    {'  '.join(map(str, pictures))}")
        if self.trainer["logger"] is not False:
            print(f"curves      {shlex.join(['tensorboard', '--logdir', str(self.folder)])}", flush=True)
        return best

    def _best_command(self) -> str:
        files, _ = split_arguments(self.fit)
        return shlex.join(["python", "-m", "project", "fit", *files, "--config", str(self.folder / BEST)])

    def _best_yaml(self, best: Any) -> str:
        """What the config files lack of the best trial: its values, and what was given on the search's command line."""
        files, _ = split_arguments(self.fit)
        settings = {**self.space.settings(best.params), **self.extra}
        wanted = self._parse.read(self.fit, settings)
        lacking = overlaid(settings, difference(wanted, self._parse.read(files, settings)))
        lacking.get("trainer", {}).pop("default_root_dir", None)
        wanted["trainer"]["default_root_dir"] = self._parse.read(files, lacking)["trainer"]["default_root_dir"]
        if self._parse.read(files, lacking) != wanted:  # a class whose arguments cannot be told in parts
            lacking = wanted
        tried = "  ".join(f"{key} {value}" for key, value in best.params.items())
        head = [
            f"# Trial {best.number} of the search {self.name}: {self.options.metric} {best.value:.4f}, the best of its epochs.",
            f"#     {self._best_command()}",
            f"# Tried: {tried}",
        ]
        return "\n".join([*head, yaml.safe_dump(lacking, sort_keys=False, allow_unicode=True)])

    def _best_run(self, root: Path) -> tuple[int, dict[str, float]]:
        """Train the best once more, as its trial was, and test it; the exit code, and the metrics of the run."""
        files, single = split_arguments(self.fit)
        if code := self._process(
            ["fit", *files, "--config", str(self.folder / BEST), f"--trainer.default_root_dir={root}"]
        ):
            return code, {}
        run = latest_run(root)
        machine = [
            word for i, word in enumerate(single) if word.startswith(MACHINE) or (i and single[i - 1] in MACHINE)
        ]
        if code := self._process(["test", "--ckpt_path", str(run / CHECKPOINTS / "best.ckpt"), *machine]):
            return code, {}
        return 0, json.loads((run / "metrics.json").read_text())

    def _process(self, arguments: list[str]) -> int:
        """Run a command; 0, or the exit code that a signal to us asks for."""
        code, stopped = run_to_the_end([sys.executable, "-m", "project", *arguments])
        if stopped:
            print(
                f"the best trial was not tested: the same command with --resume begins its {arguments[0]} again",
                flush=True,
            )
            return 128 + stopped
        if code:
            raise UserError(f"{arguments[0]} of the best trial ended with exit code {code}; what it printed says why")
        return 0

    def outer_score(self, best: Any) -> tuple[int, float]:
        """The best's score on the outer fold, taken once for each best; the exit code, and the score."""
        path = self.folder / "outer.json"
        known = read(path)
        if known.get("trial") != best.number:  # none yet, or the search has gone on since and found another
            code, metrics = self._best_run(self.folder / "best")
            if code:
                return code, math.nan
            wanted = f"test/{self.options.metric.removeprefix('val/')}"
            if wanted not in metrics:
                raise UserError(
                    f"metric: a test logs no {wanted}, so outer folds cannot be scored by {self.options.metric}"
                )
            known = {"trial": best.number, "values": best.params, "outer": metrics[wanted]}
            with written_whole(path) as draft:
                draft.write_text(json.dumps(known, indent=2) + "\n")
        return 0, float(known["outer"])
