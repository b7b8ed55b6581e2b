"""A table of images: for labels that live in a CSV file, and for groups that must not cross splits."""

import csv
import posixpath
from pathlib import Path

from project.data.sources import SPLIT_FOLDERS, Sample, _Files, existing
from project.errors import UserError


class Manifest(_Files):
    """A CSV file with the columns path,label and, where wanted, split and group; data.root is the file.

    Paths are relative to the file's folder. split is train, val, test or empty. Images of one group (a patient, a burst) never
    cross splits.
    """

    def __init__(self, root: str | None) -> None:
        super().__init__()
        table = existing(root, "a CSV file with the columns path,label[,split][,group]")
        if table.is_dir():
            raise UserError(
                f"data.root: {table} is a folder; the source Manifest reads a CSV file path,label[,split][,group]"
            )
        self.samples = []
        try:
            self._read(table)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{table} is no CSV file in UTF-8 ({error}); save the table as one") from error
        if not self.samples:
            raise UserError(f"{table}: no image is listed below the first line")
        self.samples.sort(key=lambda sample: sample.key)

    def _read(self, table: Path) -> None:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or []
            if not {"path", "label"} <= set(columns):
                raise UserError(
                    f"{table}: the first line must name the columns path,label[,split][,group], not {columns}"
                )
            if unknown := set(columns) - {"path", "label", "split", "group"}:
                raise UserError(
                    f"{table}: unknown column {sorted(unknown)[0]!r}; the columns are path,label[,split][,group]"
                )
            if len(set(columns)) < len(columns):
                raise UserError(f"{table}: a column is named twice in the first line")
            for row in rows:
                self._add(table, rows.line_num, row)

    def _add(self, table: Path, line: int, row: dict[str, str | None]) -> None:
        where = f"{table}, line {line}"
        if None in row:  # the csv module's name for what stands beyond the last column
            raise UserError(f"{where}: more cells than columns; a name with a comma has to stand in quotes")
        name, label = (row["path"] or "").strip(), (row["label"] or "").strip()
        split, group = (row.get("split") or "").strip(), (row.get("group") or "").strip()
        if not name or not label:
            raise UserError(f"{where}: path and label must both be given")
        if split and split not in SPLIT_FOLDERS:
            raise UserError(f"{where}: split must be train, val, test or empty, not {split!r}")
        name = posixpath.normpath(name)  # ./a.png is a.png
        if name in self._paths:
            raise UserError(f"{where}: {name} is listed twice")
        path = table.parent / name
        if not path.is_file():
            raise UserError(f"{where}: there is no file {path}")
        self._paths[name] = path
        self.samples.append(Sample(name, label, SPLIT_FOLDERS.get(split), group or None))
