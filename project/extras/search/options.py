"""`python -m project search`: its options, the checks before the first trial, what is done after the last (advice A1, A2)."""

import inspect
import json
import math
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from project.errors import UserError
from project.extras.search.search_run import SearchRun
from project.extras.search.space import Space, read_space
from project.files import written_whole
from project.parser import OneLineParser
from project.settings import GROUPS


def search(
    space: str,
    trials: int = 30,
    name: str | None = None,
    storage: str | None = None,
    resume: bool = False,
    workers: int = 1,
    devices: str | None = None,
    sampler: Literal["tpe", "random"] = "tpe",
    pruner: Literal["asha", "median", "none"] = "asha",
    metric: str = "val/acc",
    mode: Literal["max", "min"] | None = None,
    seed: int = 0,
    timeout: float | None = None,
    heartbeat: float = 60.0,
    outer_folds: int | None = None,
    test: bool = False,
) -> None:
    """Find good hyperparameters: many short fits, each in a process of its own. All options of fit are taken as well.

    Args:
        space: YAML file that says which keys of the config to search, and where; see configs/search.
        trials: How many in all, over all workers and resumptions; finished, pruned and failed ones count, interrupted ones do not.
        name: Of the search, whose folder is runs/search/NAME; null takes the first config file's.
        storage: Where several machines meet: postgresql://USER@HOST/DATABASE, mysql://..., or journal:PATH, a file on a shared
            disk. Null is a SQLite file in the search's folder, for the processes of one machine.
        resume: Go on with the search of this name: the budget that is left, and interrupted trials once more.
        workers: Trials at a time in this process; they share out the processor's cores.
        devices: GPUs for one trial each, such as 0,1; null leaves that to trainer.devices.
        sampler: tpe learns from the trials before (Watanabe 2023); random does not.
        pruner: asha stops a trial that is not among the best third so far after 1/5 of its validations (Li et al. 2020); median
            one below the median of the others at the same validation; none lets all finish.
        metric: What is searched for, as it is logged in validation; a trial's is that of its best epoch, which best.ckpt keeps.
        mode: Whether more (max) or less (min) of it is better; null takes less for a loss, else more.
        seed: Of the sampler alone; seed_everything is that of every training.
        timeout: Seconds after which no further trial begins; null for no end.
        heartbeat: Seconds between two signs of life of a worker; after three that are missed, its trials are begun again.
        outer_folds: k of a nested evaluation: a whole search for each of k outer folds, which then tests its best once.
        test: Train the best once more, as an ordinary run, and test it: the only time that test images are opened.
    """


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code, 1 when no trial was completed."""
    if find_spec("optuna") is None:
        raise UserError('search needs Optuna: pip install -e ".[search]"')
    parser = OneLineParser(prog="python -m project search")
    parser.add_function_arguments(search)
    own, fit = _divide(arguments)
    if any(argument in ("-h", "--help") for argument in fit):
        parser.parse_args(["--help"])
    if "--space" not in {argument.split("=", 1)[0] for argument in own}:
        raise UserError("search needs --space, such as --space configs/search/basic.yaml")
    options = parser.parse_args(own)
    _check(options)
    space = read_space(Path(options.space).expanduser())
    if options.outer_folds is None:
        return SearchRun(options, space, fit).run()[0]
    return _nested(options, space, fit)


def _divide(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The command's own arguments, and those of fit."""
    names = inspect.signature(search).parameters
    own: list[str] = []
    fit: list[str] = []
    place = fit
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        if argument.startswith("-") and not _is_number(argument):
            flag = argument.split("=", 1)[0]
            place = own if flag[2:] in names else fit
            near = get_close_matches(flag[2:], names, n=1, cutoff=0.8)
            if place is fit and near and flag.startswith("--") and "." not in flag and flag not in GROUPS:
                raise UserError(f"{flag[2:]}: there is no such key; did you mean {near[0]}?")
            if place is own and flag == argument and names[flag[2:]].annotation is bool and following.startswith("-"):
                place.append(f"{flag}=true")  # --resume alone will do
                continue
        place.append(argument)
    return own, fit


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check(options: Any) -> None:
    for key, least in (("trials", 1), ("workers", 1), ("outer_folds", 2), ("seed", 0)):
        if options[key] is not None and options[key] < least:
            raise UserError(f"{key} must be {least} or more, not {options[key]}")
    for key in ("timeout", "heartbeat"):
        if options[key] is not None and not 0 < options[key] < math.inf:
            raise UserError(f"{key} must be above 0 (seconds), not {options[key]}")
    if not options.metric.startswith("val/") or " " in options.metric:
        raise UserError(f"metric must be one of validation, such as val/acc or val/loss, not {options.metric!r}")
    if options.name is not None and any(part in ("", ".", "..") for part in options.name.split("/")):
        raise UserError(f"name must be that of a folder below runs/search, not {options.name!r}")
    if options.devices is not None and options.workers != 1:
        raise UserError("give workers or devices, not both: there is one trial for each device")
    if options.devices is not None and not all(part.strip() for part in options.devices.split(",")):
        raise UserError(f"devices must be numbers of GPUs, such as 0,1, not {options.devices!r}")
    if options.outer_folds is not None and options.test:
        raise UserError("test has no effect with outer_folds, which test the best of every fold; leave it out")


def _nested(options: Any, space: Space, fit: list[str]) -> int:
    """A search for every outer fold, each tested once on images that its search never saw."""
    from project.extras.search.nested import report

    for argument in fit:
        if argument.split("=", 1)[0].startswith(("--data.test_size", "--data.test_fold")):
            raise UserError(f"{argument.split('=', 1)[0][2:]} has no effect with outer_folds: leave it out")
    folds = []
    for outer in range(options.outer_folds):
        command = SearchRun(options, space, fit, outer)
        code, best = command.run()
        if best is None:  # nothing to test, or stopped, or time is up
            return code
        code, outer_score = command.outer_score(best)
        if code:
            return code
        folds.append({"inner": best.value, "outer": outer_score})
    numbers, lines = report(folds, options.metric, command.maximise)
    with written_whole(command.folder.parent / "nested.json") as draft:
        draft.write_text(json.dumps(numbers, indent=2) + "\n")
    print("\n" + "\n".join(lines), flush=True)
    return 0
