"""Nested evaluation (advice A2): how much the score that chose a configuration flatters it.

The best of many trials is best partly by luck on the validation images. Each outer fold is therefore kept from a
whole search, and tests its winner once: Cawley & Talbot 2010, JMLR 11:2079-2107; Varma & Simon 2006, BMC
Bioinformatics 7:91.
"""

import json
import statistics
from dataclasses import replace

from project.extras.search.search import Search
from project.files import written_whole


def nested(search: Search, folds: int) -> int:
    """A search for every outer fold, whose best is tested on images that its search never saw; the exit code."""
    inner, outer = [], []
    for fold in range(folds):
        data = {**search.config["data"], "test_folds": folds, "test_fold": fold}
        part = replace(search, config={**search.config, "data": data}, name=f"{search.name}/outer_{fold}")
        code, best = part.run()
        if best is None:  # nothing to test, stopped, or time is up
            return code
        code, metrics = part.test_best(part.folder / "best")
        if code:
            return code
        inner.append(best.value)
        outer.append(metrics[part.metric.replace("val/", "test/")])
    found = optimism(inner, outer, search.mode)
    with written_whole(search.folder / "nested.json") as draft:
        draft.write_text(json.dumps({"metric": search.metric, **found}, indent=2) + "\n")
    print(f"\n{search.metric} of the best trials (inner), in the tests on the outer folds, and the gaps between them:")
    for name, numbers in found.items():
        print(f"{name}  mean {numbers['mean']:.4f}, standard deviation {numbers['sd']:.4f}", flush=True)
    return 0


def optimism(inner: list[float], outer: list[float], mode: str) -> dict[str, dict[str, float | list[float]]]:
    """The validation scores of the best trials, their scores on the outer folds, and the gaps between them.

    Args:
        inner: A score for each of two or more outer folds.
        outer: Likewise.
        mode: max where more of the score is better, else min; a gap is positive where validation flatters.

    Returns:
        inner, outer, gap -> the values of the folds, their mean and their standard deviation (sd).
    """
    gap = [(i - o) * (1 if mode == "max" else -1) for i, o in zip(inner, outer, strict=True)]
    return {
        name: {"folds": values, "mean": statistics.fmean(values), "sd": statistics.stdev(values)}
        for name, values in (("inner", inner), ("outer", outer), ("gap", gap))
    }
