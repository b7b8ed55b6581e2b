"""What docs/look.md prints runs."""

import re

import pytest
from conftest import ROOT
from matplotlib.figure import Figure

from project.extras import look

PAGE = (ROOT / "docs" / "look.md").read_text()


def test_the_notebook_code_runs_as_printed(trained, capsys) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    figures = []
    lines = [
        re.sub(r"^figures\.", "keep(figures.", line) + (")" if line.startswith("figures.") else "")
        for line in block.splitlines()
    ]
    exec("\n".join(lines), {"keep": figures.append})
    assert len(figures) == 3 and all(isinstance(figure, Figure) for figure in figures)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_yaml_is_a_setting(cli, workdir) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (workdir / "part.yaml").write_text(block)
    result = cli(
        "fit", "--config", ROOT / "configs/digits.yaml", "--config", "part.yaml", "--trainer.fast_dev_run", "1"
    )
    assert result.code == 0, result.err


def test_every_callback_is_explained() -> None:
    names = {name for name in look.__all__ if name.startswith("Look")}
    assert names == set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
