"""What the program takes a folder for, said by its commands; and names that look like numbers survive all of them."""

import csv
import json
import shutil
import unicodedata
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, make_folder

from project.cli import Parser, build
from project.data import ImageDataModule, Manifest
from project.settings import LINKS, load_checkpoint

FOLDER = ["--config", str(ROOT / "configs" / "folder.yaml"), "--trainer.max_epochs", "1", "--data.num_workers", "0"]
NAMES = [
    *("1e5", "1.5e5", "-1e-3", "null", "0x10", unicodedata.normalize("NFD", "müsli"), "1", "1.0", "1_0", "01", "yes"),
    *("~", "true", "None", "inf", "nan", ".5", "2001-01-01", "1:30", "=", "<<", "[a]", "{b: c}", "a, b", "a: b"),
    *("- x", "--x", "# y", "&a", "*b", "!t", "@z", "%p", "'q'", '"d"', "$HOME", "a\tb", "10", "9", "Ünï 猫"),
]


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"....ftypheic" + name.encode())


@pytest.mark.parametrize("name", NAMES)
def test_text_is_text_when_settings_are_written_and_read(name) -> None:
    parser = Parser()
    parser.add_argument("--names", type=list[str])
    parser.add_argument("--rates", type=dict[str, float])
    parser.add_argument("--text", type=str)
    values = {"names": [name, name], "rates": {name: 1e-5}, "text": name}
    for style in ({}, {"default_flow_style": True, "width": 10**9}):
        written = yaml.safe_dump(values, sort_keys=False, **style)
        assert yaml.safe_load(written) == values
        read = parser.parse_string(written)
        assert read.as_dict() == values and yaml.safe_load(parser.dump(read)) == values


def test_text_without_quotes_is_refused_where_it_is_a_number(cli, folder) -> None:
    result = cli("fit", *FOLDER, "--data.root", folder, "--data.class_names", "[1e5, b]")
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert "data.class_names: expected text in quotes, not 100000.0" in result.err


def test_classes_are_in_natural_order_and_given_ones_as_given(tmp_path) -> None:
    root = make_folder(tmp_path / "images", dict.fromkeys(["10", "9", "a2", "a10", "a1"], 4))
    assert ImageDataModule(str(root)).class_names == ["9", "10", "a1", "a2", "a10"]
    given = ["a10", "10", "9", unicodedata.normalize("NFD", "ü")]
    assert ImageDataModule(str(root), class_names=given).class_names == ["a10", "10", "9", "ü"]


def test_a_checkpoint_keeps_the_order_of_its_classes(trained) -> None:
    names = load_checkpoint(trained / "checkpoints" / "last.ckpt")["hyper_parameters"]["class_names"]
    assert names == list("0123456789")
    data = build(ImageDataModule, {LINKS["class_names"]: ["10", "2", "1"]})
    assert data.class_names == ["10", "2", "1"]


def test_decomposed_names_in_a_table_or_on_the_disk_are_found(tmp_path) -> None:
    for disk in ("NFC", "NFD"):
        root = make_folder(tmp_path / disk, {unicodedata.normalize(disk, "müsli"): 1})
        (path,) = root.rglob("*.png")
        for table in ("NFC", "NFD"):
            name = unicodedata.normalize(table, path.relative_to(root).as_posix())
            (root / f"{table}.csv").write_text(f"path,label\n{name},{name.split('/')[0]}\n", encoding="utf-8")
            source = Manifest(str(root / f"{table}.csv"))
            assert source.content(source.samples[0]) == path.read_bytes()
            assert source.samples[0].label == unicodedata.normalize("NFC", "müsli")


def test_fit_says_what_it_takes_the_folder_for_and_records_what_is_left_out(cli, workdir, tiny_net) -> None:
    for split, count in (("Train", 8), ("Testing", 3)):
        make_folder(workdir / "R" / split, dict.fromkeys(["10", "9", "red"], count), seed=count)
    put(workdir / "R", "Thumbs.db", "Train/9/.DS_Store", "Train/red/notes.txt", "@eaDir/x.png", "docs/a.md")
    result = cli("fit", *FOLDER, *tiny_net, "--data.root", "R")
    assert result.code == 0
    assert "data       R/<split>/<class>: 3 classes (9, 10, red); images: train 18, val 6, test 9" in result.out
    assert "left out: " in result.out and "system files 3" in result.out and "folders without images 1" in result.out
    left_out = json.loads(next(workdir.glob("runs/*/version_0/run.json")).read_text())["left_out"]
    assert left_out == {"system files": 3, ".txt": 1, ".md": 1, "folders without images": 1}
    for names in ("val", "kitty"):
        (workdir / "R" / names).symlink_to("Testing")
        result = cli("fit", *FOLDER, *tiny_net, "--data.root", "R")
        (workdir / "R" / names).unlink()
        assert result.code == 2 and len(result.err.splitlines()) == 1
        assert f"{names} and Testing in R are one folder under two names: remove the link" in result.err


def test_a_class_that_loses_all_its_images_stops_the_run(cli, workdir, tiny_net) -> None:
    root = make_folder(workdir / "images", {"blue": 8, "red": 8})
    put(root, *(f"owl/{i}.HEIC" for i in range(6)), *(f"red/{i}.heic" for i in range(4)))
    for options, words in (([], "cannot be read: "), (["--data.on_bad_image", "skip"], "no image is left of owl: ")):
        result = cli("fit", *FOLDER, *tiny_net, "--data.root", root, *options)
        assert result.code == 2 and len(result.err.splitlines()) == 1
        assert words in result.err and "Pillow's plug-in" in result.err
    assert not (workdir / "runs").exists()


def test_predict_counts_every_file(cli, trained, workdir) -> None:
    root = make_folder(workdir / "images", {"blue": 3})
    put(root, *(f"blue/{i}.HEIC" for i in range(4)), "notes.txt", ".hidden.png", "blue/Thumbs.db")
    result = cli("predict", "--ckpt_path", "best", "--data.root", root)
    assert result.code == 0 and "3 predictions" in result.out and "4 could not be read" in result.out
    assert "images: predict 7" in result.out and "(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)" in result.out
    assert "left out: images that cannot be read 4, " in result.out
    assert all(words in result.out for words in (".txt 1", "hidden files 1", "system files 1"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "line"),
    [
        ("train", "3 classes (blue, grey, red); images: train 14, val 4, test 5"),
        ("leave_out", "2 classes (blue, red); images: train 13, val 4, test 4"),
    ],
)
def test_rare_classes_can_be_kept_or_left_out(cli, workdir, tiny_net, choice, line) -> None:
    root = make_folder(workdir / "images", {"blue": 10, "grey": 2, "red": 11})
    result = cli("fit", *FOLDER, *tiny_net, "--data.root", root)
    assert result.code == 2 and "grey (2)" in result.err and "data.rare_classes" in result.err
    result = cli("fit", *FOLDER, *tiny_net, "--data.root", root, "--data.rare_classes", choice)
    assert result.code == 0 and line in result.out
    record = json.loads(next(workdir.glob("runs/*/version_0/run.json")).read_text())
    assert record["left_out"] == ({} if choice == "train" else {"images in no split": 2})
    with next(workdir.glob("runs/*/version_0/split.csv")).open(encoding="utf-8") as file:
        homes = [row["split"] for row in csv.DictReader(file) if row["label"] == "grey"]
    assert sorted(homes) == (["test", "train"] if choice == "train" else [])
    result = cli("test", "--ckpt_path", "best")
    assert result.code == 0 and "Added to" in result.out


@pytest.mark.slow
def test_names_survive_training_resuming_predicting_exporting_and_the_table(cli, workdir, tiny_net) -> None:
    pytest.importorskip("project.extras.export")
    folders = [name for name in NAMES if name != ".5"]  # which is hidden
    root = make_folder(workdir / "images", dict.fromkeys(folders, 4))
    expected = {unicodedata.normalize("NFC", name) for name in folders}
    assert cli("fit", *FOLDER, *tiny_net, "--data.root", root).code == 0
    (run,) = workdir.glob("runs/*/version_0")
    names = load_checkpoint(run / "checkpoints" / "last.ckpt")["hyper_parameters"]["class_names"]
    assert set(names) == expected and len(names) == len(folders)
    assert cli("test", "--ckpt_path", "last").code == 0
    assert cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2").code == 0
    predictions = []
    assert cli("export", "--ckpt_path", "last", "--out", "net.safetensors").code == 0
    for model in ("last", "net.safetensors"):
        assert cli("predict", "--ckpt_path", model, "--data.root", root).code == 0
        with (workdir / "predictions.csv").open(encoding="utf-8", newline="") as file:
            predictions.append([(row["path"], row["class"]) for row in csv.DictReader(file)])
    assert predictions[0] == predictions[1] and {name for _, name in predictions[0]} <= expected
    assert {path.rpartition("/")[0] for path, _ in predictions[0]} == expected
    shutil.copy(run / "split.csv", root / "split.csv")
    again = ["--data.source", "project.data.Manifest", "--data.root", root / "split.csv"]
    assert cli("fit", *FOLDER, *tiny_net, *again).code == 0
    other = load_checkpoint(next(workdir.glob("runs/*/version_1")) / "checkpoints" / "last.ckpt")
    assert other["hyper_parameters"]["class_names"] == names
    assert cli("fit", "--config", run / "config.yaml").code == 0
