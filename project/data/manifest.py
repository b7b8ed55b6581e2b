"""A table of images: for labels that live in a CSV file, and for groups that must not cross splits."""

import csv
import io
import posixpath
import unicodedata

from project.data.sources import FileSource, Sample, existing, key_of, split_of
from project.errors import UserError

COLUMNS = ("path", "label", "split", "group")


class Manifest(FileSource):
    """A CSV file with the columns path,label and, where wanted, split and group; data.root is the file.

    Paths are relative to the file's folder; split is train, val, test or empty; a group never crosses splits.
    """

    needed, columns = {"path", "label"}, "path,label[,split][,group]"

    def __init__(self, root: str | None) -> None:
        table = existing(root, f"a CSV file with the columns {self.columns}")
        self.paths, self.samples = {}, []
        try:
            file = io.StringIO(table.read_text("utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"data.root: {table} is not a CSV file in UTF-8 ({error})") from error
        rows = csv.DictReader(file, restkey="more", restval="")
        if not self.needed <= set(rows.fieldnames or ()) <= set(COLUMNS):
            raise UserError(f"{table}: the first line must name the columns {self.columns}, not {rows.fieldnames}")
        for row in rows:
            where = f"{table}, line {rows.line_num}"
            if "more" in row:
                raise UserError(f"{where}: more cells than columns; put a name with a comma in quotes")
            name, label, split, group = (key_of(row.get(column, "").strip()) for column in COLUMNS)
            if not name or (not label and "label" in self.needed):
                raise UserError(f"{where}: path and label must both be given, the path alone for predict")
            if split and not split_of(split):
                raise UserError(f"{where}: split must be train, val, test or empty, not {split!r}")
            key = posixpath.normpath(name)  # ./a.png is a.png
            if key in self.paths:
                raise UserError(f"{where}: {key} is listed twice")
            path = table.parent / key  # the survey of the images says which are missing
            # Or its accents are stored decomposed.
            self.paths[key] = path if path.exists() else table.parent / unicodedata.normalize("NFD", key)
            self.samples.append(Sample(key, label or None, split_of(split), group or None))
        if not self.samples:
            raise UserError(f"{table}: no image is listed below the first line")
        self.samples.sort()


class ImageList(Manifest):
    """Images to predict: a CSV file like that of Manifest, whose labels may be missing."""

    needed, columns = {"path"}, "path[,label][,split][,group]"
