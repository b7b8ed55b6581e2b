"""The page: right numbers, a reason for what is missing, and nothing of the user's that a browser takes for markup."""

import csv
import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_folder
from sklearn.metrics import precision_recall_fscore_support

from project.__main__ import main
from project.classifier import ImageClassifier
from project.data import Digits, ImageDataModule
from project.extras.report.report import run_page
from project.extras.report.run import read_run, wilson

NET = ["--model.net", "project.nets.ConvNet", "--model.net.init_args.channels", "[8,16]", "--data.image_size", "16"]
EVIL = "<script>alert('1')<script>&amp;\" onload=x"  # no slash, because it is the name of a folder


class Page(HTMLParser):
    """What a browser would make of it: elements, texts, alternative texts; checks that all is closed in order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.alts: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []  # cells of all tables
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        assert "onload" not in values
        if tag == "img":
            self.alts.append(values["alt"] or "")
            assert (values["src"] or "").startswith("data:image/png;base64,")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data
        if "style" not in self.open and "title" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(cli, *options: str) -> Page:
    result = cli("report", *options)
    assert result.code == 0 and result.err == "", result.err
    html = Path("report.html").read_text()
    assert len(html) < 5_000_000
    return Page(html)


@pytest.fixture(scope="module")
def tested(_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tested run and its report.html."""
    folder, before = tmp_path_factory.mktemp("tested"), Path.cwd()
    shutil.copytree(_trained / "runs", folder / "runs")
    os.chdir(folder)
    try:
        assert main(["test", "--ckpt_path", "best"]) == 0
        assert main(["report"]) == 0
    finally:
        os.chdir(before)
    return folder


def test_a_tested_run_has_every_chapter_with_the_right_numbers(tested) -> None:
    run = tested / "runs/digits/version_0"
    page = Page((tested / "report.html").read_text())
    assert len(page.alts) == 13 and all(len(alt) > 20 for alt in page.alts)
    assert "left out" not in page.text and "has changed since" not in page.text
    model = ImageClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt", map_location="cpu").eval()
    data = ImageDataModule(source=Digits, image_size=8, channels=1)
    data.setup("validate")
    batch = data.loaded["val"].images.__getitems__([(0, key) for key in data.loaded["val"].index])
    with torch.no_grad():
        predicted = model(batch["image"]).argmax(1)
    correct = int((predicted == batch["label"]).sum())
    assert f"Confusion matrix: {correct} of 287 correct" in " ".join(page.alts)
    scores = precision_recall_fscore_support(batch["label"], predicted, zero_division=0)
    expected = [[str(i), *(f"{scores[k][i]:.1%}" for k in range(3)), str(scores[3][i])] for i in range(10)]
    head = page.rows.index(["class", "precision", "recall", "F1", "images"])
    assert page.rows[head + 1 : head + 11] == expected
    metrics, record = (json.loads((run / name).read_text()) for name in ("metrics.json", "run.json"))
    low, high = wilson(round(metrics["test/acc"] * 359), 359)
    test = f"Test accuracy {metrics['test/acc']:.2%} 95 % interval {low:.1%} to {high:.1%}; 359 images"
    known = [test, f"Validation accuracy {metrics['val/acc']:.2%}", record["split"]["fingerprint"], "Digits"]
    known += [record["versions"]["torch"], "project.nets.ConvNet", "The shape of the training loss", "weight_decay"]
    for words in known:
        assert words in page.text, words


@pytest.mark.slow
def test_names_stay_text_and_no_test_image_is_opened(cli, workdir) -> None:
    root = make_folder(workdir / "images", {"blue": 20, "red": 20})
    (root / "blue").rename(root / EVIL)
    assert cli("fit", "--data.root", str(root), *NET, "--trainer.max_epochs=1").code == 0
    with Path("runs/fit/version_0/split.csv").open(newline="") as file:
        tests = [root / row["path"] for row in csv.DictReader(file) if row["split"] == "test"]
    assert len(tests) == 8
    for path in tests:
        path.write_bytes(b"whoever opens this fails")
    page = report(cli)
    assert "script" not in page.tags and EVIL in page.text and EVIL in " ".join(page.alts)
    assert "not tested yet" in page.text and "Confusion matrix" in " ".join(page.alts)


def lose_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def damage_checkpoint(run: Path) -> None:
    (run / "checkpoints/best.ckpt").write_bytes(b"nothing")


def lose_records(run: Path) -> None:
    for path in run.iterdir():
        if path.is_file() and path.name != "config.yaml":
            path.unlink()


def change_images(run: Path) -> None:
    path = run / "checkpoints/best.ckpt"
    content = torch.load(path, weights_only=True)
    content["ImageDataModule"]["validated"] += 1
    torch.save(content, path)


LOSSES = {  # what happens -> the reason on the page, pictures that remain
    lose_checkpoints: ("Filters left out: the run has no checkpoint", 4),
    damage_checkpoint: ("Filters left out: ckpt_path: ", 4),
    change_images: ("Worst mistakes left out: the validation images, or the split, have changed since the training", 5),
    lose_records: ("Loss left out: the run has no readable TensorBoard event file", 9),
}


@pytest.mark.parametrize(
    "lose",
    [
        damage_checkpoint,
        change_images,
        *(pytest.param(lose, marks=pytest.mark.slow) for lose in (lose_checkpoints, lose_records)),
    ],
    ids=lambda lose: lose.__name__,
)
def test_what_is_lost_is_left_out_with_a_reason_and_the_rest_is_there(lose, cli, trained) -> None:
    lose(trained)
    page = report(cli, "--run", str(trained))
    words, pictures = LOSSES[lose]
    assert words.lower() in page.text.lower(), page.text
    assert len(page.alts) == pictures


def test_a_training_that_was_stopped_has_the_figures_of_its_checkpoint(trained) -> None:
    assert read_run("last").finished
    record = json.loads((trained / "run.json").read_text())
    (trained / "run.json").write_text(json.dumps(record | {"finished": False}))
    path = trained / "checkpoints/best.ckpt"
    content = torch.load(path, weights_only=True)
    content["callbacks"]["BestAndLast"]["metrics"] |= {"val/acc": 0.875, "test/acc": 0.5}
    torch.save(content, path)
    run = read_run("last")
    assert not run.finished and run.score("val/acc") == 0.875 and run.score("test/acc") is None
    (trained / "metrics.json").unlink()
    assert read_run(str(path)).score("val/acc") == 0.875


def test_a_limited_evaluation_has_the_interval_of_what_it_saw(trained) -> None:
    lose_checkpoints(trained)  # of which the metrics would count
    (trained / "metrics.json").write_text('{"val/acc": 0.75, "val/images": 16.0, "test/acc": NaN}')
    run = read_run("last")
    assert run.interval("val") == wilson(12, 16) and run.images("val") == 16
    assert run.images("test") == 359 and run.interval("test") is None


def test_several_runs_are_compared_by_what_differs(cli, trained) -> None:
    other = trained.parent / "<b>version_1"
    shutil.copytree(trained, other)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["model"]["lr"] = 0.005
    (other / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    page = report(cli, "--run", str(trained), str(other))
    assert len(page.alts) == 4 and "b" not in page.tags and "digits/<b>version_1" in page.text
    assert "2 runs compared" in page.text and "All were scored on the same split" in page.text
    head = page.rows.index(["key", "digits/version_0", "digits/<b>version_1"])
    assert page.rows[head + 1 :] == [["model.lr", "0.02", "0.005"]]
    metrics = json.loads((trained / "metrics.json").read_text())
    assert [row[:2] for row in page.rows[1:3]] == [
        [name, f"{metrics['val/acc']:.2%}"] for name in ("digits/version_0", "digits/<b>version_1")
    ]
    record = json.loads((other / "run.json").read_text())
    record["split"]["fingerprint"] = "another"
    (other / "run.json").write_text(json.dumps(record | {"seed": 7}))
    page = report(cli, "--run", str(trained), "--run", str(other))
    assert "The splits differ" in page.text and ["seed", "0", "7"] in page.rows


@pytest.mark.slow
def test_the_same_run_gives_the_same_page_but_for_the_date(trained) -> None:
    first = run_page(read_run("last"), "today")
    assert run_page(read_run("runs/digits/version_0/checkpoints/best.ckpt"), "today") == first
    assert run_page(read_run("runs/digits/version_0"), "tomorrow") == first.replace("today", "tomorrow")


BAD = {
    "no such run": (["--run", "nowhere"], "run: nowhere is neither the folder of a run"),
    "not a run": (["--run", "runs"], "give last, or a folder such as runs/digits/version_0"),
    "a file elsewhere": (["--run", "stray.ckpt"], "run: stray.ckpt is neither"),
    "twice": (["--run", "last", "runs/digits/version_0"], "is given twice"),
    "not a page": (["--out", "report.pdf"], "should end in .html"),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD.keys())
def test_bad_options_are_one_line(cli, trained, options, words) -> None:
    Path("stray.ckpt").write_text("")
    result = cli("report", *options)
    assert result.code == 2 and result.out == "" and result.err.count("\n") == 1 and words in result.err, result.err
    assert not Path("report.html").exists()


def test_without_a_run_it_says_how_to_make_one(cli, workdir) -> None:
    result = cli("report")
    assert result.code == 2 and "no run in runs yet" in result.err


OPTIONS = {
    "grey": ["--data.channels=1"],
    "alpha": ["--data.channels=4"],
    "not validated": ["--trainer.limit_val_batches=0"],
    "no validation images": ["--data.val_size=0"],
    "diverged": ["--model.lr=1e30"],
    "no checkpoint": ["--trainer.enable_checkpointing=false"],
    "transformer": [
        *("--model.net=project.nets.TimmModel", "--model.net.init_args.name=vit_tiny_patch16_224"),
        *("--data.image_size=32", "--model.lr=0.000001"),
    ],
}
SAYS = {
    "not validated": "none is on record",
    "no validation images": "Calibration left out: there are no val images",
    "diverged": "Calibration left out: the model's outputs are not all finite numbers",
    "no checkpoint": "Calibration left out: the run has no checkpoint",
    "transformer": "as in a vision transformer",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_unusual_runs_have_a_page_too(name, cli, folder) -> None:
    net = [] if name == "transformer" else NET
    assert cli("fit", "--data.root", str(folder), *net, "--trainer.max_epochs=1", *OPTIONS[name]).code == 0
    page = report(cli, "--run", "runs/fit/version_0")
    assert SAYS.get(name, "Grad-CAM at") in page.text, page.text
    assert name not in ("grey", "alpha", "not validated", "transformer") or "left out" not in page.text


@pytest.mark.slow
def test_images_that_are_gone_are_said_to_be(cli, folder) -> None:
    assert cli("fit", "--data.root", str(folder), *NET, "--trainer.max_epochs=1").code == 0
    shutil.rmtree(folder)
    page = report(cli)
    assert len(page.alts) == 5 and "Confusion matrix, table of classes, precision and recall left out" in page.text
