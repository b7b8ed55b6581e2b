import csv
import dataclasses
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from project.data.manifest import ImageList, Manifest
from project.data.sources import ImageFolder, Sample
from project.data.split import fingerprint, save_split, split_samples
from project.errors import UserError


@contextmanager
def one_line(*words: str):
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def table(folder: Path, text: str, images: str = "a.png b.png sub/c.png") -> str:
    """A table of this text beside these images; its path."""
    for number, name in enumerate(images.split(), start=1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (number, 1)).save(folder / name)
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_path_and_label_are_enough(tmp_path):
    source = Manifest(table(tmp_path, "path,label\nsub/c.png,dog\na.png,cat\n"))
    assert source.samples == [Sample("a.png", "cat"), Sample("sub/c.png", "dog")]
    for sample in source.samples:
        assert source.path(sample) == tmp_path / sample.key
        assert source.content(sample) == (tmp_path / sample.key).read_bytes()


def test_all_columns_in_any_order(tmp_path):
    text = "group,split,label,path\np1,train,cat,a.png\n,valid,dog,b.png\np2,,cat,sub/c.png\n"
    assert Manifest(table(tmp_path, text)).samples == [
        Sample("a.png", "cat", "train", "p1"),
        Sample("b.png", "dog", "val", None),
        Sample("sub/c.png", "cat", None, "p2"),
    ]


@pytest.mark.parametrize("name", ["train", "Training", "val", "Valid", "validation", "dev", "test", "TEST"])
def test_every_name_of_a_split(tmp_path, name):
    source = Manifest(table(tmp_path, f"path,label,split\na.png,cat,{name}\n"))
    assert source.samples[0].split == {"tr": "train", "te": "test"}.get(name[:2].lower(), "val")


def test_spreadsheet_exports_are_read(tmp_path):
    """Byte order mark, Windows line ends, empty lines, blanks around the cells, quoted names."""
    Image.new("L", (1, 1)).save(tmp_path / "x, y.png")
    path = table(tmp_path, "")
    Path(path).write_bytes('\ufeffpath,label\r\n a.png , cat\r\n\r\n"x, y.png","big, red"\r\n'.encode())
    assert Manifest(path).samples == [Sample("a.png", "cat"), Sample("x, y.png", "big, red")]


def test_groups_do_not_cross_the_split(tmp_path):
    names = [f"{i:02d}.png" for i in range(60)]
    rows = [f"{name},{'cat' if i % 2 else 'dog'},patient{i // 4}" for i, name in enumerate(names)]
    samples = Manifest(table(tmp_path, "path,label,group\n" + "\n".join(rows), " ".join(names))).samples
    splits = split_samples(samples)
    groups = {name: {samples[i].group for i in positions} for name, positions in splits.items()}
    assert all(groups.values()) and sum(map(len, groups.values())) == 15


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,split\na.png,train\n", ["labels.csv", "path,label", "'split'"]),
        ("a.png,cat\nb.png,dog\n", ["labels.csv", "first line"]),
        ("path;label\na.png;cat\n", ["labels.csv", "first line", "path;label"]),
        ("path,label,colour\na.png,cat,red\n", ["labels.csv", "first line", "colour"]),
        ("path,label\na.png,cat\nb.png,cat\na.png,dog\n", ["labels.csv, line 4", "a.png is listed twice"]),
        ("path,label,split\na.png,cat,Trian\n", ["labels.csv, line 2", "train, val, test or empty", "'Trian'"]),
        ("path,label\na.png,cat\nb.png,\n", ["labels.csv, line 3", "path and label"]),
        ("path,label\na.png,cat\nb.png,   \n", ["labels.csv, line 3", "path and label"]),
        ("path,label\n,cat\n", ["labels.csv, line 2", "path and label"]),
        ("path,label\na.png\n", ["labels.csv, line 2", "path and label"]),
        ("path,label\na.png,cat,train\n", ["labels.csv, line 2", "more cells than columns"]),
        ("path,label\n", ["labels.csv", "no image"]),
        ("", ["labels.csv", "path,label"]),
    ],
)
def test_mistakes_are_one_line_with_the_line_number(tmp_path, text, words):
    path = table(tmp_path, text)
    with one_line(str(tmp_path), *words):
        Manifest(path)


def test_what_is_no_table_is_one_line(tmp_path):
    with one_line("data.root is not given", "CSV"):
        Manifest(None)
    with one_line("data.root", str(tmp_path / "nowhere.csv")):
        Manifest(str(tmp_path / "nowhere.csv"))
    with one_line("data.root", str(tmp_path), "not a CSV file"):
        Manifest(str(tmp_path))
    table(tmp_path, "")
    with one_line("a.png", "UTF-8"):
        Manifest(str(tmp_path / "a.png"))
    path = tmp_path / "excel.csv"
    for encoding in ("latin-1", "utf-16"):
        path.write_bytes("path,label\na.png,Bär\n".encode(encoding))
        with one_line("excel.csv", "UTF-8"):
            Manifest(str(path))


def test_save_split_and_manifest_are_inverse(tmp_path):
    names = [
        'we, "quoted".png',
        "ä ß.png",
        "semi;colon.png",
        "plain.png",
        "five.png",
        "six.png",
        "seven.png",
        "eight.png",
    ]
    for label in ("cat, big", "dög"):
        (tmp_path / label).mkdir()
        for name in names:
            Image.new("L", (1, 1)).save(tmp_path / label / name)
    folder = ImageFolder(str(tmp_path))
    samples = [dataclasses.replace(sample, group=f"g{i}" if i < 2 else None) for i, sample in enumerate(folder.samples)]
    splits = split_samples(samples)
    save_split(tmp_path / "split.csv", samples, splits)

    where = {samples[i].key: name for name, rows in splits.items() for i in rows}
    with (tmp_path / "split.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "label", "split", "group"]
    assert rows[1:] == [[s.key, s.label, where[s.key], s.group or ""] for s in samples]

    again = Manifest(str(tmp_path / "split.csv")).samples
    assert again == [dataclasses.replace(sample, split=where[sample.key]) for sample in samples]
    other_seed = split_samples(again, 0.4, 0.4, split_seed=9)
    assert other_seed == splits
    assert fingerprint(again, other_seed) == fingerprint(samples, splits)


def test_a_list_of_images_to_predict(tmp_path):
    """Paths relative to the table or absolute; labels may be missing."""
    path = table(tmp_path, f"path\nsub/c.png\n{tmp_path / 'b.png'}\n./a.png\n")
    source = ImageList(path)
    assert source.samples == [Sample(str(tmp_path / "b.png")), Sample("a.png"), Sample("sub/c.png")]
    assert [source.path(sample) for sample in source.samples] == [
        tmp_path / name for name in ("b.png", "a.png", "sub/c.png")
    ]
    assert ImageList(table(tmp_path, "path,label\na.png,cat\nb.png,\n")).samples[0] == Sample("a.png", "cat")


@pytest.mark.parametrize(
    ("text", "words"),
    [("file\na.png\n", "must name the columns path[,label]"), ("path\n", "no image"), ("path,label\n,cat\n", "line 2")],
)
def test_a_list_that_cannot_be(tmp_path, text, words):
    with one_line(words):
        ImageList(table(tmp_path, text))
