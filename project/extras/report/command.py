"""What this extra adds to the command line."""

from project.commands import Command


def report(run: list[str] = ["last"], out: str = "report.html") -> None:  # noqa: B006 (shown as the default by --help)
    """Write a run as one HTML file for a colleague, or compare several runs.

    Args:
        run: last (the newest run), the folder of a run, or a checkpoint in one; two or more are compared: --run A B
        out: The file to write.
    """
    from project.extras.report.write import write_report

    print(write_report(run, out))


COMMANDS = [Command(report, needs="nothing")]
