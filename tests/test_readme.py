"""Every command of the README runs as printed, in order, on small data; files and links exist."""

import json
import re
import shlex
import time
import urllib.request

import pytest
from conftest import ROOT, make_folder
from house import COMMANDS, absent, present
from tensorboard import program

BLOCKS = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
LINES = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
PRINTED = [part for line in LINES if line.startswith(("python", "tensorboard", "pip")) for part in line.split(" && ")]
SMALLER = ["--trainer.max_epochs", "1", "--data.image_size", "16"]
QUICK = {  # what makes a command quick
    "lr_find": [*SMALLER[2:], "--steps", "10", "--min_lr", "0.0001"],
    "batch_find": [*SMALLER[2:], "--min_batch", "16", "--max_batch", "16"],
    "search": [*SMALLER, "--trials", "1"],
}


def scalars_shown(folder: str) -> dict:
    """What TensorBoard, started on a folder, lists as scalars."""
    board = program.TensorBoard()
    board.configure(argv=[None, "--logdir", folder, "--port", "0", "--load_fast", "false"])
    url = board.launch()
    for _ in range(60):
        with urllib.request.urlopen(f"{url}data/plugin/scalars/tags") as answer:
            if found := json.load(answer):
                return found
        time.sleep(0.5)
    return {}


def test_first_block_is_the_two_commands_and_nothing_else() -> None:
    install, test = BLOCKS[0].strip().splitlines()
    train = "python -m project fit --config configs/digits.yaml && python -m project test --ckpt_path best"
    assert install == f"pip install -e . && {train}"
    assert test == 'pip install -e ".[dev]" && pytest -n 2'


@pytest.mark.slow
def test_commands_run_as_printed(cli, workdir, monkeypatch) -> None:
    (workdir / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("HOME", str(workdir))  # ~/flowers is made here
    make_folder(workdir / "flowers")
    make_folder(workdir / "unsorted", {"red": 3}, seed=1)
    ran = skipped = 0
    for printed in PRINTED:
        words = shlex.split(printed)
        if words[:3] == ["python", "-m", "project"]:
            command, *rest = words[3:]
            if not present(COMMANDS.get(command, "")) or any(absent(word) for word in rest):
                skipped += 1
                continue
            place = str(workdir / "runs/folder/version_0/checkpoints/last.ckpt")
            rest = [place if word == "PATH" else word for word in rest]
            starts = command == "fit" and "--config" in rest
            small = SMALLER[: 2 if "configs/digits.yaml" in rest else 4] if starts else []
            result = cli(command, *rest, *small, *QUICK.get(command, []))
            assert result.code == 0, (printed, result.err)
            ran += 1
        elif words[0] == "tensorboard":
            shown = scalars_shown(words[2])
            assert any("val/acc" in tags for tags in shown.values()), shown
            ran += 1
        else:
            assert words[0] in ("pip", "pytest")  # .ci/run runs these
    assert ran + skipped == 15
    assert len((workdir / "predictions.csv").read_text().splitlines()) == 4


def test_files_and_links_exist() -> None:
    """Those of an extra that has been deleted excepted."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text()
        for link in re.findall(r"\]\((?!http)([^)#]+)", text):
            path = (page.parent / link).resolve()
            assert path.exists() or absent(str(path.relative_to(ROOT))), (page.name, link)
        for config in re.findall(r"configs/[\w/]+\.yaml", text):
            assert (ROOT / config).is_file() or absent(config), (page.name, config)


def test_the_tests_that_docs_name_exist() -> None:
    found, path = 0, ""
    for file, name in re.findall(
        r"(tests/[\w/]+\.py)|(?<![/`])\b(test_\w+)", (ROOT / "docs" / "reliability.md").read_text()
    ):
        path = file or path
        if name and not absent(path):
            assert f"def {name}(" in (ROOT / path).read_text(), (path, name)
            found += 1
    assert found > 50
