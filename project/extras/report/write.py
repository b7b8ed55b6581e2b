"""`python -m project report`: one run, or several compared, as one HTML file that needs no network (card C7)."""

import argparse
import os
import sys
from datetime import datetime
from typing import NoReturn

import torch

from project.classifier import ImageClassifier
from project.cli import LINKS
from project.data import ImageDataModule
from project.errors import UserError
from project.extras.report.compare import build_comparison
from project.extras.report.predictions import predict
from project.extras.report.report import Trained, build_report
from project.extras.report.run import Run, find_run, read_run
from project.files import output_path, written_whole
from project.parser import OneLineParser
from project.settings import checkpoint_config, load_checkpoint


class Parser(argparse.ArgumentParser):
    """Errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"report: {message}; python -m project report --help tells more")


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        "python -m project report", description="Write a run as one HTML file for a colleague.", allow_abbrev=False
    )
    made.add_argument(
        "--run",
        nargs="+",
        action="extend",
        metavar="RUN",
        help="last (the default), the folder of a run, or a checkpoint in one; two or more are compared: --run A B",
    )
    made.add_argument("--out", default="report.html", help="the file to write (default: report.html)")
    return made


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code: 0, or 2 after a mistake that the user can mend."""
    try:
        options = parser().parse_args(arguments)
        print(write_report(options.run or ["last"], options.out))
    except UserError as error:
        if os.environ.get("PROJECT_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except SystemExit as error:  # --help
        return int(error.code or 0)
    except KeyboardInterrupt:
        return 130
    return 0


def write_report(names: list[str], out: str) -> str:
    """Write the page.

    Args:
        names: Of the runs: last, folders, checkpoints.
        out: The file.

    Returns:
        What was written, in a line.

    Raises:
        UserError: no such run, or a file that cannot be written.
    """
    path = output_path(out, "report.html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out: {path.name} should end in .html; give a file, for example --out report.html")
    found = [find_run(name) for name in names]
    folders = [folder.resolve() for folder, _ in found]
    if twice := next((names[i] for i, folder in enumerate(folders) if folder in folders[:i]), None):
        raise UserError(f"run: {twice} is given twice; name each run once")
    runs = [read_run(folder, checkpoint) for folder, checkpoint in found]
    made = datetime.now().astimezone().isoformat(" ", "minutes")
    text = build_report(runs[0], open_trained(runs[0]), made) if len(runs) == 1 else build_comparison(runs, made)
    with written_whole(path) as draft:
        draft.write_text(text, encoding="utf-8")
    what = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return f"{path}: {what}, {path.stat().st_size / 1e6:.2f} MB; open it in any browser"


def open_trained(run: Run) -> Trained:
    """The model of a run and its answers for the validation images, as far as they are to be had."""
    if run.checkpoint is None:
        return Trained(why="the run has no checkpoint")
    try:
        content = load_checkpoint(run.checkpoint)
        model, data = build(content)
    except Exception as error:  # of whatever kind: the code of the network may be another by now
        return Trained(why=f"the checkpoint cannot be opened: {_words(error)}")
    try:
        return Trained(model, predict(model, data, content[type(data).__name__]))
    except Exception as error:  # of whatever kind: images on a disk that is gone, a source of the user's own
        return Trained(model, why=_words(error))


def build(content: dict) -> tuple[ImageClassifier, ImageDataModule]:
    """Model, with its trained weights, and data module of a checkpoint; no image is read yet."""
    made = OneLineParser()
    made.add_lightning_class_args(ImageDataModule, "data")
    made.add_lightning_class_args(ImageClassifier, "model")
    for source, target in LINKS.items():
        made.link_arguments(source, target, apply_on="instantiate")
    built = made.instantiate_classes(made.parse_object(checkpoint_config(content, "validate")))
    model = built["model"]
    model.load_state_dict(content["state_dict"])
    model.temperature = content.get("temperature", 1.0)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), built["data"]


def _words(error: Exception) -> str:
    first = " ".join(str(error).split())[:300]
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"
