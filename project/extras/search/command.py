"""`python -m project search`: its options (advice A1, A2)."""

import os
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from project.commands import Command
from project.errors import UserError


def search(
    config: dict[str, Any],
    run_name: str,
    space: str,
    trials: PositiveInt = 30,
    name: str | None = None,
    storage: str | None = None,
    resume: bool = False,
    workers: PositiveInt = 1,
    devices: str | None = None,
    sampler: Literal["tpe", "random"] = "tpe",
    pruner: Literal["asha", "median", "none"] = "asha",
    metric: str = "val/acc",
    mode: Literal["max", "min"] | None = None,
    seed: NonNegativeInt = 0,
    timeout: PositiveFloat | None = None,
    heartbeat: PositiveFloat = 60.0,
    outer_folds: int | None = None,
    test: bool = False,
) -> int:
    """Find good hyperparameters: many short fits, each in a process of its own. All options of fit are accepted.

    Args:
        space: YAML file with the keys of the config to search, and their ranges or choices; see configs/search.
        trials: How many in all, over all workers and resumptions. Completed, pruned and failed ones count.
        name: Name of the search, whose folder is runs/search/NAME; null takes the first config file's.
        storage: Where several machines meet: journal:PATH (a file on a shared disk), postgresql+pg8000://USER@HOST/DATABASE
            or mysql+pymysql://USER@HOST/DATABASE. Null is a SQLite file in the search's folder, for one machine.
        resume: Resume the search of this name: the remaining trials, and once more those that were interrupted.
        workers: Trials at a time; they share the processor's cores.
        devices: GPUs, such as 0,1, each for `workers` trials at a time; null leaves that to trainer.devices.
        sampler: tpe learns from the trials so far (Watanabe 2023, arXiv:2304.11127); random does not.
        pruner: asha stops a trial that is not among the best third so far after 1/5 of its validations (Li et al. 2020,
            arXiv:1810.05934), median one that is below the median of the others; none lets all finish.
        metric: What is optimised, as it is logged in validation; the score of a trial is that of its best epoch.
        mode: Whether more (max) or less (min) of it is better; null takes less for a loss, else more.
        seed: Seed of the sampler alone; seed_everything is that of every training.
        timeout: Seconds after which no further trial starts; null for no limit.
        heartbeat: Seconds between two signs of life of a worker; after three missed ones its trial is started again.
        outer_folds: k of a nested evaluation (2 or more): a search for each of k folds, whose best is tested on it.
        test: Train the best once more, as an ordinary run, and test it: the only time that test images are opened.
    """
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError('search needs Optuna: pip install -e ".[search]"') from error
    from project.extras.search.nested import nested
    from project.extras.search.search import Search
    from project.extras.search.space import read_space

    if outer_folds is not None and (outer_folds < 2 or test):
        raise UserError("outer_folds must be 2 or more, and takes the place of test: leave one out")
    slots = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in devices.split(",")] if devices else [{}]
    slots *= workers
    if len(slots) > 1 and "OMP_NUM_THREADS" not in os.environ:  # else each takes all cores
        threads = {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // len(slots)))}
        slots = [slot | threads for slot in slots]
    whole = Search(
        config=config,
        run_name=run_name,
        name=name or run_name,
        space=read_space(Path(space)),
        trials=trials,
        storage=storage,
        resume=resume,
        slots=slots,
        sampler=sampler,
        pruner=pruner,
        metric=metric,
        mode=mode or ("min" if metric.endswith("loss") else "max"),
        seed=seed,
        timeout=timeout,
        heartbeat=heartbeat,
    )
    if outer_folds is not None:
        return nested(whole, outer_folds)
    code, best = whole.run()
    return whole.test_best(whole.root)[0] if test and best is not None else code


COMMANDS = [Command(search, needs="config")]
