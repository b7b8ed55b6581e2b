"""What a check finds: lines of ok, warning or error, each with its fix, and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from project.extras.look import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Level = Literal["ok", "warning", "error"]
Rule = tuple[bool, Level, str, str]  # whether it applies, level, what was found, how to fix it


class Findings:
    """Prints each finding at once, because a check takes a while, and keeps it."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: Where pictures are saved; it exists.
        """
        self.folder = folder
        self.lines: list[tuple[Level, str, str]] = []  # level, topic, words
        self._pictures: list[str] = []

    def add(self, level: Level, topic: str, words: str, fix: str = "") -> None:
        self.lines.append((level, topic, words))
        print(f"{level:<7} {topic:<12} {words}{f'. Fix: {fix}' if fix else ''}", flush=True)

    def judge(self, topic: str, fine: str, rules: Sequence[Rule]) -> None:
        """A line for every rule that applies, or `fine` if none does."""
        applying = [rule for rule in rules if rule[0]] or [(True, "ok", fine, "")]
        for _, level, words, fix in applying:
            self.add(level, topic, words, fix)

    def picture(self, name: str, words: str, figure: "Figure") -> None:
        Image.fromarray(figures.pixels(figure)).save(self.folder / name)
        self._pictures.append(f"{self.folder / name}: {words}")

    def finish(self) -> int:
        """Print the pictures and the sum; returns the exit code."""
        for line in self._pictures:
            print(f"picture {line}")
        count = {level: sum(found == level for found, _, _ in self.lines) for level in ("ok", "warning", "error")}
        advice = "fix the errors, and check again" if count["error"] else "ready to fit"
        print(f"\n{count['ok']} ok, {count['warning']} warning, {count['error']} error: {advice}")
        return 1 if count["error"] else 0


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first few of a list of names."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
