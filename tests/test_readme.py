"""Every command of the README runs as printed, in order, on small data."""

import json
import re
import shlex
import time
import urllib.request

from conftest import ROOT, make_folder
from tensorboard import program

BLOCKS = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for block in BLOCKS
    for line in block.splitlines()
    if line.startswith(("python", "tensorboard", "pip"))
]
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
    assert (
        install
        == "pip install -e . && python -m project fit --config configs/digits.yaml && python -m project test --ckpt_path best"
    )
    assert test == 'pip install -e ".[dev]" && pytest -n 2'


def test_commands_run_as_printed(cli, workdir, monkeypatch) -> None:
    (workdir / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("HOME", str(workdir))  # ~/flowers is made here
    make_folder(workdir / "flowers")
    make_folder(workdir / "unsorted", {"red": 3}, seed=1)
    ran = 0
    for command in COMMANDS:
        for part in command.split(" && "):
            words = shlex.split(part)
            if words[:3] == ["python", "-m", "project"]:
                words = [
                    str(workdir / "runs/folder/version_0/checkpoints/last.ckpt") if word == "PATH" else word
                    for word in words[3:]
                ]
                small = (
                    SMALLER[: 2 if "configs/digits.yaml" in words else 4]
                    if words[0] == "fit" and "--config" in words
                    else []
                )
                result = cli(*words, *small, *QUICK.get(words[0], []))
                assert result.code == 0, (part, result.err)
                ran += 1
            elif words[0] == "tensorboard":
                shown = scalars_shown(words[2])
                assert any("val/acc" in tags for tags in shown.values()), shown
                ran += 1
            else:
                assert words[0] in ("pip", "pytest")  # .ci/run runs these
    assert ran == 15
    assert len((workdir / "predictions.csv").read_text().splitlines()) == 4


def test_files_and_links_exist() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text()
        for link in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (page.parent / link).exists(), (page.name, link)
        for config in re.findall(r"configs/[\w/]+\.yaml", text):
            assert (ROOT / config).is_file(), (page.name, config)
