"""The report: right figures, whatever is missing, and nothing of the user's that the browser could take for its own."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS, SMALL, make_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from project.classifier import ImageClassifier
from project.data import Digits, ImageDataModule
from project.extras.report.page import cards, code, details, missing, paragraph, table
from project.extras.report.predictions import class_rows, confusion_words
from project.extras.report.run import wilson

NET = ["--model.net", "project.nets.ConvNet", "--model.net.init_args.channels", "[8,16]", "--data.image_size", "16"]


class Page(HTMLParser):
    """What a browser would make of it: elements, texts, alternative texts; checks that all is closed in order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.alts: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        if tag == "img":
            self.alts.append(values["alt"] or "")
            assert (values["src"] or "").startswith("data:image/png;base64,")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "title" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(cli, *options: str, out: str = "report.html") -> Page:
    result = cli("report", *options, "--out", out)
    assert result.code == 0 and result.err == "", result.err
    content = Path(out).read_text()
    assert len(content) < 5_000_000
    return Page(content)


def test_a_run_has_every_chapter_with_the_right_numbers(cli, trained) -> None:
    page = report(cli)
    assert len(page.alts) == 13 and all(len(alt) > 20 for alt in page.alts)
    model = ImageClassifier.load_from_checkpoint(trained / "checkpoints/best.ckpt", map_location="cpu").eval()
    data = ImageDataModule(source=Digits, image_size=8, channels=1)
    data.setup("validate")
    batch = data.loaded["val"].images.__getitems__([(0, key) for key in data.loaded["val"].index])
    with torch.no_grad():
        predicted = model(batch["image"]).argmax(1)
    right = int((predicted == batch["label"]).sum())
    assert f"Confusion matrix: {right} of 287 right" in " ".join(page.alts)
    scores = precision_recall_fscore_support(batch["label"], predicted, zero_division=0)
    rows = re.findall(
        r"<tr><td>(\d)</td>((?:<td class=\"number\">[^<]*</td>){4})</tr>", Path("report.html").read_text()
    )
    assert len(rows) == 10
    for name, cells in rows:
        shown = re.findall(r">([^<]*)<", cells)[0::2]
        expected = [f"{scores[k][int(name)]:.1%}" for k in range(3)] + [str(scores[3][int(name)])]
        assert [cell for cell in shown if cell] == expected
    metrics = json.loads((trained / "metrics.json").read_text())
    assert f"{metrics['val/acc']:.2%}" in page.text and "not tested yet" in page.text
    record = json.loads((trained / "run.json").read_text())
    for words in (
        record["split"]["fingerprint"],
        record["versions"]["torch"],
        "project.nets.ConvNet",
        "The fall of the training loss looks",
        "Groups of parameters",
    ):
        assert words in page.text or words in Path("report.html").read_text(), words


def test_a_tested_run_shows_the_test_first_and_its_interval(cli, trained) -> None:
    assert cli("test", "--ckpt_path", "best").code == 0
    accuracy = json.loads((trained / "metrics.json").read_text())["test/acc"]
    page = report(cli)
    low, high = wilson(round(accuracy * 359), 359)
    assert f"Test accuracy {accuracy:.2%} 95 % interval {low:.1%} to {high:.1%}; 359 images" in page.text
    assert "not tested yet" not in page.text


def test_no_test_image_is_opened(cli, folder, workdir) -> None:
    assert cli("fit", "--data.root", str(folder), *NET, "--trainer.max_epochs=1").code == 0
    rows = [row.split(",") for row in (workdir / "runs/fit/version_0/split.csv").read_text().splitlines()[1:]]
    tests = [folder / row[0] for row in rows if row[2] == "test"]
    assert len(tests) == 12
    for path in tests:
        path.write_bytes(b"whoever opens this fails")
    page = report(cli)
    assert len(page.alts) >= 12 and "left out" not in page.text


@settings(deadline=None)
@given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilsons_interval_solves_its_equation(numbers: tuple[int, int]) -> None:
    """Its ends are the shares p for which the observed one is 1.96 standard deviations of p away."""
    right, total = numbers
    low, high = wilson(right, total)
    assert 0 <= low <= right / total <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(right / total - end) == pytest.approx(
                1.959964 * math.sqrt(end * (1 - end) / total), rel=1e-6, abs=1e-9
            )


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_the_table_of_classes_is_scikit_learns(classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    true, guess = random.integers(0, classes, 40), random.integers(0, classes, 40)
    matrix = torch.from_numpy(confusion_matrix(true, guess, labels=range(classes)))
    expected = precision_recall_fscore_support(true, guess, labels=range(classes), zero_division=0)
    assert np.allclose(class_rows(matrix), np.stack(expected, 1))


def test_the_confusion_is_said_in_words() -> None:
    matrix = torch.tensor([[5, 0, 0], [3, 2, 0], [0, 1, 4]])
    assert confusion_words(matrix, ["a", "b", "c"]).startswith("11 of 15 right; most often b taken for a, 3 times")
    assert confusion_words(torch.eye(3).long(), ["a", "b", "c"]) == "all 3 right"


EVIL = '<script>alert("1")</script>&amp;\' onload=x'


def test_names_that_are_html_stay_text(cli, workdir) -> None:
    root = make_folder(workdir / "evil", {"blue": 20, "red": 20})
    (root / "blue").rename(root / "<script>alert(1)<script>&amp;' onload=x")
    assert cli("fit", "--data.root", str(root), *NET, "--trainer.max_epochs=1").code == 0
    page = report(cli)
    assert "script" not in page.tags and "<script>alert(1)<script>&amp;' onload=x" in page.text


@pytest.mark.parametrize(
    "html",
    [
        paragraph(EVIL),
        missing(EVIL, EVIL),
        cards([(EVIL,) * 3]),
        table(EVIL, [EVIL], [[EVIL]]),
        code(EVIL, EVIL),
        details(EVIL, ""),
    ],
)
def test_every_part_escapes(html: str) -> None:
    page = Page(html)
    assert "script" not in page.tags and EVIL in page.text


def lose_images(run: Path, root: Path) -> None:
    shutil.rmtree(root)


def change_images(run: Path, root: Path) -> None:
    for path in root.rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def add_images(run: Path, root: Path) -> None:
    make_folder(root, {"blue": 25, "green": 20, "red": 20}, seed=1)


def lose_checkpoints(run: Path, root: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def break_checkpoint(run: Path, root: Path) -> None:
    (run / "checkpoints/best.ckpt").write_bytes(b"nothing")


def lose_records(run: Path, root: Path) -> None:
    for path in run.iterdir():
        if path.is_file() and path.name != "config.yaml":
            path.unlink()


def break_records(run: Path, root: Path) -> None:
    for path in run.iterdir():
        if path.is_file() and path.name != "config.yaml":
            path.write_bytes(b"\x00{nothing")


LOSSES = {
    lose_images: ("Confusion matrix, table of classes, precision and recall left out", 8),
    change_images: ("the content of validation images has changed since the training", 8),
    add_images: ("the images or their split have changed since the training", 8),
    lose_checkpoints: ("the run has no checkpoint", 4),
    break_checkpoint: ("the checkpoint cannot be opened", 4),
    lose_records: ("the run has no readable TensorBoard event file", 8),
    break_records: ("the run has no readable TensorBoard event file", 8),
}


@pytest.fixture(scope="session")
def folder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on a folder."""
    import os

    from project.main import main

    folder, before = tmp_path_factory.mktemp("folder_run"), Path.cwd()
    make_folder(folder / "images")
    os.chdir(folder)
    try:
        assert main(["fit", "--data.root", "images", *NET, "--trainer.max_epochs=2"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_what_is_lost_is_left_out_with_a_reason_and_the_rest_is_there(lose, cli, folder_run, workdir) -> None:
    shutil.copytree(folder_run, workdir, dirs_exist_ok=True)
    run = workdir / "runs/fit/version_0"
    # The configuration has the images' absolute path: let it be this copy's.
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(folder_run), str(workdir)))
    for path in (run / "checkpoints").glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        content["config"] = content["config"].replace(str(folder_run), str(workdir))
        torch.save(content, path)
    whole = report(cli)
    assert "left out" not in whole.text
    lose(run, workdir / "images")
    words, least = LOSSES[lose]
    page = report(cli, "--run", str(run))
    assert words in page.text, page.text
    assert least <= len(page.alts) + 4 and len(page.alts) < len(whole.alts)


STOP = """
from lightning import Callback
class Stop(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.current_epoch == 12: raise KeyboardInterrupt
"""


def test_a_training_that_was_stopped_says_so_and_has_its_own_figures(cli, trained, workdir, monkeypatch) -> None:
    (workdir / "stopping_report.py").write_text(STOP)
    monkeypatch.syspath_prepend(str(workdir))
    assert "has not finished" not in report(cli).text
    before = json.loads((trained / "metrics.json").read_text())["val/acc"]
    more = ["--trainer.max_epochs=24", "--trainer.callbacks+=stopping_report.Stop"]
    assert cli("fit", "--ckpt_path", "last", *more).code == 130
    now = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)["callbacks"]["BestAndLast"]["metrics"][
        "val/acc"
    ]
    assert now > before
    page = report(cli)
    assert "This training has not finished" in page.text and f"Validation accuracy {now:.2%}" in page.text
    assert cli("test", "--ckpt_path", "best").code == 0
    page = report(cli)
    assert "This training has not finished" in page.text and f"Validation accuracy {now:.2%}" in page.text


def test_limited_evaluations_have_the_interval_of_what_they_saw(cli, workdir) -> None:
    limits = ["--trainer.limit_val_batches=2", "--data.batch_size=8", "--trainer.max_epochs=1"]
    assert cli("fit", *DIGITS, *SMALL, *limits).code == 0
    assert cli("test", "--ckpt_path", "best", "--trainer.limit_test_batches=3").code == 0
    text = report(cli).text
    metrics = json.loads(Path("runs/digits/version_0/metrics.json").read_text())
    for split, images in (("val", 16), ("test", 24)):
        low, high = wilson(round(metrics[f"{split}/acc"] * images), images)
        assert f"95 % interval {low:.1%} to {high:.1%}; {images} images" in text
    assert "is another one" not in text


def test_a_run_without_a_checkpoint_is_the_last_one_too(cli, workdir) -> None:
    assert cli("fit", *DIGITS, *SMALL, "--trainer.max_epochs=1", "--trainer.enable_checkpointing=false").code == 0
    assert "the run has no checkpoint" in report(cli).text


def test_a_diverged_run_has_no_calibration_but_a_reason(cli, workdir) -> None:
    assert cli("fit", *DIGITS, *SMALL[:-2], "--trainer.max_epochs=1", "--model.lr=1e30").code == 0
    text = report(cli).text
    assert (
        "nan" not in text.split("The record")[0].replace("not finite", "").lower().split("how far")[0]
        or "diverged" in text
    )
    assert "Calibration left out: the model's outputs are not all finite numbers" in text


def test_predictions_without_a_validation_on_record_are_said_to_be_new(cli, workdir) -> None:
    assert cli("fit", *DIGITS, *SMALL, "--trainer.max_epochs=1", "--trainer.limit_val_batches=0").code == 0
    text = report(cli).text
    assert "taken for this page: the run itself has none on record" in text and "Best epoch" not in text


def test_without_validation_images_there_is_a_reason(cli, folder) -> None:
    assert cli("fit", "--data.root", str(folder), *NET, "--trainer.max_epochs=1", "--data.val_size=0").code == 0
    assert "the run has no validation images" in report(cli).text


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_four_channels(cli, folder, channels) -> None:
    assert (
        cli("fit", "--data.root", str(folder), *NET, "--trainer.max_epochs=1", f"--data.channels={channels}").code == 0
    )
    assert "left out" not in report(cli).text


def test_a_transformer_goes_without_grad_cam(cli, folder) -> None:
    net = [
        "--model.net=project.nets.TimmModel",
        "--model.net.init_args.name=vit_tiny_patch16_224",
        "--data.image_size=32",
    ]
    assert cli("fit", "--data.root", str(folder), *net, "--trainer.max_epochs=1", "--model.lr=0.000001").code == 0
    page = report(cli)
    assert "Grad-CAM" in page.text and "Spread of the activations by layer" in " ".join(page.alts)


def test_of_many_classes_the_worst_thirty_are_in_the_table(cli, workdir, tiny_net) -> None:
    rows, random = [], np.random.default_rng(0)
    (workdir / "set").mkdir()
    for i in range(120):
        path = workdir / "set" / f"{i}.png"
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        rows.append(f"{path},class {i % 40:02d},{'train' if i < 80 else 'val'}")
    (workdir / "set.csv").write_text("\n".join(["path,label,split", *rows]))
    options = [
        "--data.source=project.data.Manifest",
        "--data.root=set.csv",
        "--data.test_size=0",
        "--trainer.max_epochs=1",
    ]
    assert cli("fit", *options, *tiny_net).code == 0
    page = report(cli)
    assert "the 30 of 40 classes with the lowest F1" in page.text
    assert len(re.findall(r"<tr><td>class \d\d</td>", Path("report.html").read_text())) == 30


def test_several_runs_are_compared_by_what_differs(cli, trained) -> None:
    assert cli("fit", *DIGITS, *SMALL, "--trainer.max_epochs=2", "--model.lr=0.005", "--seed_everything=3").code == 0
    other = trained.parent / "version_1"
    page = report(cli, "--run", str(trained), str(other))
    text = page.text
    assert "All were scored on one split" in text and "digits/version_0" in text and len(page.alts) == 4
    settings_table = text[text.index("What differs in the settings", text.index("What differs in the settings") + 5) :]
    assert (
        "model.lr 0.02 0.005" in settings_table
        and "trainer.max_epochs 3 2" in settings_table
        and "data.batch_size" not in settings_table
    )
    assert cli("fit", *DIGITS, *SMALL, "--trainer.max_epochs=1", "--data.split_seed=1").code == 0
    page = report(cli, "--run", str(trained), "--run", str(trained.parent / "version_2"))
    assert "The splits differ" in page.text


def test_the_same_run_gives_the_same_page_but_for_the_date(cli, trained) -> None:
    report(cli)
    report(cli, "--run", "runs/digits/version_0", out="again.html")
    report(cli, "--run", "runs/digits/version_0/checkpoints/best.ckpt", out="third.html")
    first, *others = (
        re.sub(r"Made [^<]*", "", Path(name).read_text()) for name in ("report.html", "again.html", "third.html")
    )
    assert all(other == first for other in others)


BAD = {
    "no such run": (["--run", "nowhere"], "run: there is no nowhere; give last"),
    "not a run": (
        ["--run", "runs"],
        "runs is not the folder of a run, it has no config.yaml; did you mean runs/digits/version_0?",
    ),
    "a file elsewhere": (["--run", "stray.ckpt"], "stray.ckpt does not lie in the checkpoints of a run"),
    "twice": (["--run", "last", "runs/digits/version_0"], "is given twice"),
    "not a page": (["--out", "report.pdf"], "should end in .html"),
    "a misspelt option": (["--ruin", "last"], "unrecognized arguments: --ruin last"),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD.keys())
def test_bad_options_are_one_line(cli, trained, options, words) -> None:
    Path("stray.ckpt").write_text("")
    result = cli("report", *options)
    assert result.code == 2 and result.out == "" and result.err.count("\n") == 1 and words in result.err, result.err
    assert not Path("report.html").exists()


def test_without_a_run_it_says_how_to_make_one(cli, workdir) -> None:
    result = cli("report")
    assert result.code == 2 and "there is no run in runs yet" in result.err
