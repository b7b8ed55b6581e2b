"""What belongs to each extra, and what each of the extras needs; by name and by imports alone."""

import ast
import re
from pathlib import Path

from conftest import ROOT

EXTRAS = ("check", "export", "look", "report", "search", "tune")
COMMANDS = {  # of which extra each command is; every other command belongs to the core
    "check": "check",
    "export": "export",
    "verify": "export",
    "report": "report",
    "search": "search",
    "lr_find": "tune",
    "batch_find": "tune",
}


def present(extra: str) -> bool:
    """Whether it has not been deleted; the core, which is called "", never is."""
    return not extra or (ROOT / "project" / "extras" / extra).is_dir()


def belongings(extra: str, root: Path = ROOT) -> list[Path]:
    """Its code, tests, configs, docs and benchmarks, found by its name."""
    found = [root / "project" / "extras" / extra, root / "tests" / "extras" / extra]
    for folder in ("configs", "docs", "benchmarks"):
        named = re.compile(rf"{extra}(_.*)?(\..+)?")
        found += [path for path in (root / folder).iterdir() if named.fullmatch(path.name)]
    return [path for path in found if path.exists()]


def absent(path: str) -> bool:
    """Whether a path of the project, such as docs/search.md, belongs to an extra that has been deleted."""
    parts = Path(path).parts
    names = [parts[2]] if parts[:2] in (("project", "extras"), ("tests", "extras")) and len(parts) > 2 else []
    if parts[:1] in (("configs",), ("docs",), ("benchmarks",)) and len(parts) > 1:
        names = [extra for extra in EXTRAS if re.fullmatch(rf"{extra}(_.*)?(\..+)?", parts[1])]
    return any(not present(name) for name in names if name in EXTRAS)


def imported(file: Path, root: Path = ROOT) -> set[str]:
    """The modules of this project that a file imports, at any level of its code."""
    package = ".".join(file.relative_to(root).with_suffix("").parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == "project"}


def extras_used(folder: Path, root: Path = ROOT) -> set[str]:
    """The extras that the files below a folder import."""
    names = {name for file in folder.rglob("*.py") for name in imported(file, root)}
    return {extra for extra in EXTRAS if any(f"{name}.".startswith(f"project.extras.{extra}.") for name in names)}


def with_dependents(extra: str) -> set[str]:
    """An extra, and those that cannot do without it."""
    gone = {extra}
    while True:
        more = {other for other in EXTRAS if present(other) and extras_used(ROOT / "project" / "extras" / other) & gone}
        if more <= gone:
            return gone
        gone |= more
