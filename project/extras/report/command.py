"""What this extra adds to the command line."""

from project.commands import Command


def report(run: list[str] = [], out: str = "report.html") -> None:  # noqa: B006 (jsonargparse appends to it)
    """Write a run as one HTML file for a colleague, or compare several runs.

    Args:
        run: The folder of a run, a checkpoint in one, or last, the newest run, which is taken when none is given; two
            or more are compared: --run A B
        out: The file to write.
    """
    from project.extras.report.write import write_report

    print(write_report(run or ["last"], out))


COMMANDS = [Command(report, needs="nothing")]
