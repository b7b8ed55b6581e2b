"""One search over the fits of a configuration: checks before the first trial, the loop, what is written after (advice A1)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from project.arguments import arrange, option, split_arguments
from project.callbacks.run_folder import flatten
from project.cli import CLI, LINKS, run_name
from project.errors import UserError
from project.outfile import written_whole
from project.runs import CHECKPOINTS, latest_run
from project.tune.space import Space, put

FIXED = (  # what every trial must have in common, or is none of its business
    *(f"data.{name}" for name in ("root", "source", "class_names", "seed", "on_bad_image", "on_seen_image")),
    *(f"data.{name}" for name in ("val_size", "test_size", "split_seed", "folds", "fold", "test_folds", "test_fold")),
    *("checkpoint", "ckpt_path", "seed_everything", "trainer.default_root_dir", "trainer.logger", "trainer.fast_dev_run"),
)
PLACE = (  # what may differ between the workers of one search
    *("data.root", "data.num_workers", "data.cache", "trainer.accelerator", "trainer.devices", "trainer.default_root_dir"),
    *("trainer.enable_progress_bar", "trainer.num_nodes"),
)
MACHINE = ("--trainer.accelerator", "--trainer.devices", "--trainer.precision")  # options of fit that test takes as well
BEST = "best.yaml"


class _Parse(CLI):
    """The command line of fit up to its configuration: nothing is built, nothing is run."""

    def _nothing(self, *_: Any, **__: Any) -> None: ...

    _set_seed = _parse_ckpt_path = before_instantiate_classes = instantiate_classes = _run_subcommand = _nothing

    def read(self, arguments: list[str], settings: dict[str, Any]) -> dict[str, Any]:
        """The whole configuration of a fit with these settings on top of its files."""
        inline = ["--config", yaml.safe_dump(settings, default_flow_style=True, width=1_000_000_000)] if settings else []
        arranged, _, _ = arrange("fit", arguments)
        files, options = split_arguments(arranged)
        self.parse_arguments(self.parser, ["fit", *files, *inline, *options])
        return yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_none=False))


class SearchRun:
    """One search: for the whole command, or for one outer fold."""

    def __init__(self, options: Any, space: Space, fit: list[str], outer: int | None = None) -> None:
        self.options, self.space, self.fit = options, space, list(fit)
        self.maximise = (options.mode or ("min" if options.metric.endswith("loss") else "max")) == "max"
        files, single = split_arguments(fit)
        self._check_options(files, single)
        self._parse = _Parse("fit", fit)
        base = self._parse.read(fit, {})
        self.root = Path(base["trainer"]["default_root_dir"] or "runs").expanduser()
        self.name = options.name or run_name(fit)
        if outer is not None:
            self.name = f"{self.name}/outer_{outer}"
            self.fit += [f"--data.test_folds={options.outer_folds}", f"--data.test_fold={outer}"]
        self.folder = self.root / "search" / self.name
        # best.ckpt of a trial is to be the epoch that made its score.
        monitor = {"monitor": options.metric, "mode": "max" if self.maximise else "min"}
        self.extra = {} if monitor == {"monitor": "val/acc", "mode": "max"} else {"checkpoint": monitor}
        self.trainer = base["trainer"]
        if base["trainer"]["enable_checkpointing"] is False and (options.test or outer is not None):
            raise UserError("trainer.enable_checkpointing false keeps no checkpoint, which test and outer_folds need; leave it out")
        self._base = flatten(base)

    def _check_options(self, files: list[str], single: list[str]) -> None:
        if option("ckpt_path", files, single) not in (None, "null"):
            raise UserError("ckpt_path: a search begins every trial anew; leave it out, or give model.weights to begin from")
        for parameter in self.space.parameters:
            key = parameter.key
            if key in LINKS.values():
                source = next(data for data, model in LINKS.items() if model == key)
                raise UserError(f"space: {key} follows the data: search {source} instead")
            if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
                raise UserError(
                    f"space: {key} must be the same in every trial, or scores could not be compared; set it in the config"
                )
            for argument in single:
                flag = argument.split("=", 1)[0].removeprefix("--").rstrip("+")
                if argument.startswith("--") and (flag == key or key.startswith(f"{flag}.") or flag.startswith(f"{key}.")):
                    raise UserError(f"{flag} is given on the command line, which would overrule the searched {key}; leave one out")
        for argument in single:
            if argument.startswith("--checkpoint"):
                raise UserError("checkpoint: a search keeps the epoch that is best by --metric and --mode; give those instead")

    def check_candidates(self) -> None:
        """Parse every choice and both ends of every range as fit would: a bad one is found before the first trial."""
        for key, value, values in self.space.candidates():
            try:
                self._parse.read(self.fit, {**self.space.settings(values), **self.extra})
            except UserError as error:
                words = str(error).removeprefix("config: ")
                of = key if words.startswith(f"{key}: there is no such key") else f"{key} = {value}"
                raise UserError(f"space: {of}: {words.removeprefix(f'{key}: ')}") from error

    def run(self) -> tuple[int, float | None]:
        """Search, and say what was found; the exit code, and the best score."""
        from project.tune.pruner import make_pruner, planned_validations
        from project.tune.sampler import Seeded
        from project.tune.search import Search, share_of_cores
        from project.tune.study import Study
        from project.tune.summary import direction

        options = self.options
        self.check_candidates()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"name: {self.folder} cannot be made ({error.strerror})") from error
        storage = options.storage or f"sqlite:///{(self.folder / 'study.db').absolute()}"
        sampler = Seeded(options.sampler, options.seed)
        pruner = make_pruner(options.pruner, planned_validations(self.trainer))
        study = Study(storage, self.name, direction(self.maximise), sampler, pruner, options.heartbeat)
        study.begin(self._setup(), options.trials, options.resume or options.storage is not None)
        slots = [share_of_cores(options.workers) for _ in range(options.workers)]
        if options.devices is not None:
            slots = [{"CUDA_VISIBLE_DEVICES": device.strip()} for device in options.devices.split(",")]
        left = study.left()
        print(f"search {self.name}: {left} of {options.trials} trials left, {len(slots)} at a time, in {self.folder}", flush=True)
        loop = Search(
            study, self.space, self.folder, self._trial, options.metric, self.maximise, self.extra, slots, options.timeout
        )
        stopped = loop.run()
        best = self._conclude(study.trials())
        if stopped or study.left() > 0:
            print(f"{study.left()} trials are left: the same command with --resume goes on", flush=True)
        if stopped:
            return 128 + stopped, best
        if options.test and study.left() <= 0:
            self._best_run(self.root)
        return 0, best

    def _setup(self) -> dict[str, Any]:
        """What must be the same when a search is gone on with."""
        options = self.options
        fit = {key: value for key, value in self._base.items() if not any(key == p or key.startswith(f"{p}.") for p in PLACE)}
        own = {key: options[key] for key in ("metric", "sampler", "pruner", "seed")}
        return json.loads(json.dumps({**own, "maximise": self.maximise, "space": self.space.spec(), "fit": fit}))

    def _trial(self, folder: Path) -> list[str]:
        """The fit of one trial: an ordinary run below its folder, so that `best` and `last` go on to mean what they meant."""
        place = f"--trainer.default_root_dir={folder}"
        return [sys.executable, "-m", "project", "fit", *self.fit, "--config", str(folder / "params.yaml"), place]

    def _conclude(self, trials: list[Any]) -> float | None:
        """Write and print what is known so far; the best score."""
        from project.tune import summary

        keys, metric = self.space.keys, self.options.metric
        best = summary.best_trial(trials, self.maximise)
        shares = summary.importances(trials, keys, self.maximise)
        summary.write_csv(self.folder / "trials.csv", trials, keys, metric, self.maximise)
        pictures = summary.write_pictures(self.folder, trials, shares, metric, self.maximise)
        print("\n" + "\n".join(summary.table(trials, keys, metric, self.maximise)))
        if shares:
            print("importance  " + "  ".join(f"{name} {shares[key]:.2f}" for key, name in summary.short_keys(list(shares)).items()))
        if best is not None:
            with written_whole(self.folder / BEST) as draft:
                draft.write_text(self._best_yaml(best))
            files, _ = split_arguments(self.fit)
            print(f"best        trial {best.number}: python -m project fit {' '.join(files)} --config {self.folder / BEST}")
        print(f"pictures    {'  '.join(map(str, pictures))}")
        print(f"curves      tensorboard --logdir {self.folder}", flush=True)
        return best.value if best is not None else None

    def _best_yaml(self, best: Any) -> str:
        """The searched values, and what was given on the search's command line, which a later fit would lack."""
        settings = {**self.space.settings(best.params), **self.extra}
        resolved = self._parse.read(self.fit, settings)
        _, single = split_arguments(self.fit)
        for argument in single:
            key = argument.split("=", 1)[0].removeprefix("--").rstrip("+")
            if argument.startswith("--") and key != "trainer.default_root_dir":
                value: Any = resolved
                for name in key.split("."):
                    value = value[name] if isinstance(value, dict) else None
                put(settings, key, value)
        files, _ = split_arguments(self.fit)
        head = [
            f"# Trial {best.number} of the search {self.name}: {self.options.metric} {best.value:.4f}, the best of its epochs.",
            f"#     python -m project fit {' '.join(files)} --config {self.folder / BEST}",
        ]
        return "\n".join([*head, yaml.safe_dump(settings, sort_keys=False)])

    def _best_run(self, root: Path) -> dict[str, float]:
        """Train the best once more, as its trial was, and test it; the metrics of the run."""
        fit = ["fit", *self.fit, "--config", str(self.folder / BEST), f"--trainer.default_root_dir={root}"]
        self._process(fit)
        run = latest_run(root)
        _, single = split_arguments(self.fit)
        machine = [word for i, word in enumerate(single) if word.startswith(MACHINE) or (i and single[i - 1] in MACHINE)]
        self._process(["test", "--ckpt_path", str(run / CHECKPOINTS / "best.ckpt"), *machine])
        return json.loads((run / "metrics.json").read_text())

    def _process(self, arguments: list[str]) -> None:
        if code := subprocess.run([sys.executable, "-m", "project", *arguments], check=False).returncode:
            raise UserError(f"{arguments[0]} of the best trial ended with exit code {code}; what it printed says why")

    def outer_score(self) -> float:
        """The best's score on the outer fold, taken once."""
        path = self.folder / "outer.json"
        if not path.is_file():
            metrics = self._best_run(self.folder / "best")
            wanted = f"test/{self.options.metric.removeprefix('val/')}"
            if wanted not in metrics:
                raise UserError(f"metric: a test logs no {wanted}, so outer folds cannot be scored by {self.options.metric}")
            with written_whole(path) as draft:
                draft.write_text(json.dumps({"outer": metrics[wanted]}))
        return float(json.loads(path.read_text())["outer"])
