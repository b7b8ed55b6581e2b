"""Nested evaluation (advice A2): how much the score that chose a configuration flatters it.

The best of many trials is best partly by luck on the validation images. Each outer fold is therefore kept from a whole search, and
tests its winner once: Cawley & Talbot 2010, JMLR 11:2079-2107; Varma & Simon 2006, BMC Bioinformatics 7:91.
"""

import statistics
from typing import Any


def report(folds: list[dict[str, float]], metric: str, maximise: bool) -> tuple[dict[str, Any], list[str]]:
    """The optimism over the outer folds.

    Args:
        folds: For each outer fold: inner, the validation score of the best trial; outer, its score on the fold's images.
        metric: Name of the inner score.
        maximise: Whether more of it is better; the gap is positive where the inner score is the better one.

    Returns:
        The numbers, and the lines of a table.
    """
    sign = 1 if maximise else -1
    rows = [{**fold, "gap": sign * (fold["inner"] - fold["outer"])} for fold in folds]
    spread = {
        name: {
            "mean": statistics.fmean(row[name] for row in rows),
            "sd": statistics.stdev(row[name] for row in rows) if len(rows) > 1 else 0.0,
        }
        for name in ("inner", "outer", "gap")
    }
    lines = [
        f"{'fold':>6s}  {'inner':>8s}  {'outer':>8s}  {'gap':>8s}    ({metric} of the best trial, its test on the outer fold)"
    ]
    lines += [f"{i:>6d}  {row['inner']:>8.4f}  {row['outer']:>8.4f}  {row['gap']:>+8.4f}" for i, row in enumerate(rows)]
    for name, words in (("mean", "mean"), ("sd", "spread")):
        inner, outer, gap = (spread[part][name] for part in ("inner", "outer", "gap"))
        lines.append(f"{words:>6s}  {inner:>8.4f}  {outer:>8.4f}  {gap:>{'+' if name == 'mean' else ''}8.4f}")
    lines.append(
        "The outer mean is the figure to quote for this search; the inner one "
        + (f"flatters it by {gap:.4f}." if (gap := spread["gap"]["mean"]) > 0 else f"was worse by {-gap:.4f}, by luck.")
    )
    return {"metric": metric, "folds": rows, **spread}, lines
