"""From the names of runs to a file."""

from datetime import datetime

from project.errors import UserError
from project.extras.report.compare import comparison_page
from project.extras.report.report import run_page
from project.extras.report.run import read_run
from project.files import output_path, written_whole


def write_report(names: list[str], out: str) -> str:
    """Write the page.

    Args:
        names: The runs: last, folders, checkpoints. One is shown in detail, several are compared.
        out: The file.

    Returns:
        One line that says what was written.

    Raises:
        UserError: no such run, or a file that cannot be written.
    """
    path = output_path(out, "report.html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out: {path.name} should end in .html; give a file, for example --out report.html")
    runs = [read_run(name) for name in names]
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise UserError(f"run: a run is given twice in {' '.join(names)}; name each run once")
    made = datetime.now().astimezone().isoformat(" ", "minutes")
    text = run_page(runs[0], made) if len(runs) == 1 else comparison_page(runs, made)
    with written_whole(path) as draft:
        draft.write_text(text, encoding="utf-8")
    what = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return f"{path}: {what}, {path.stat().st_size / 1e6:.2f} MB; open it in any browser"
