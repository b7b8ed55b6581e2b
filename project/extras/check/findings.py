"""What a check finds: lines of ok, warning or error, each with its fix, and pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from project.extras.look import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rule = tuple[object, str, str, str]  # whether it applies, level, what was found, how to fix it


class Findings:
    """Prints each finding at once, because a check takes a while."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: Where pictures are saved; it exists.
        """
        self.folder = folder
        self.levels: list[str] = []  # of all lines

    def add(self, level: str, topic: str, words: str, fix: str = "") -> None:
        self.levels.append(level)
        print(f"{level:<7} {topic:<12} {' '.join(words.split())}{fix and f'. Fix: {fix}'}", flush=True)

    def judge(self, topic: str, fine: str, *rules: Rule) -> None:
        """A line for every rule that applies, or `fine` if none does."""
        applying = [rule[1:] for rule in rules if rule[0]]
        for level, words, fix in applying or [("ok", fine, "")]:
            self.add(level, topic, words, fix)

    def picture(self, name: str, words: str, figure: "Figure") -> None:
        Image.fromarray(figures.pixels(figure)).save(self.folder / name)
        print(f"picture {self.folder / name}: {words}")


def some(names: list[str]) -> str:
    """How many there are, and the first few."""
    return f"{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
