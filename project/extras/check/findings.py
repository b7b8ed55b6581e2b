"""What a check found: lines of ok, look or stop, each with its mend."""

from typing import Literal

Level = Literal["ok", "look", "stop"]


class Findings:
    """The lines of a check; each is printed at once, because a check takes a while."""

    def __init__(self) -> None:
        self.lines: list[tuple[Level, str, str]] = []

    def ok(self, topic: str, words: str) -> None:
        self._add("ok", topic, words)

    def look(self, topic: str, words: str, mend: str) -> None:
        """Something a person should look at; nothing that must stop the training."""
        self._add("look", topic, f"{words}. Mend: {mend}")

    def stop(self, topic: str, words: str, mend: str = "") -> None:
        """Something that makes the training fail, or its result worthless."""
        self._add("stop", topic, f"{words}. Mend: {mend}" if mend else words)

    def _add(self, level: Level, topic: str, words: str) -> None:
        self.lines.append((level, topic, words))
        print(f"{level:<5} {topic:<13} {words}", flush=True)

    def count(self, level: Level) -> int:
        return sum(found == level for found, _, _ in self.lines)


def some(names: list[str], shown: int = 3) -> str:
    """The first few of a list of names."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
