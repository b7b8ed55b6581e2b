import os
import runpy
import sys
import tempfile
import unicodedata
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from project.data import sources
from project.data.sources import ImageFiles, ImageFolder, Sample, natural, some
from project.errors import UserError


def put(root: Path, *names: str) -> Path:
    """Make these files; an image where the name ends like one, each of its own size."""
    for number, name in enumerate(names, start=1):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".gif"):
            Image.new("RGB", (number, 1)).save(path)
        else:
            path.write_text("no image")
    return root


@contextmanager
def one_line(*words: str):
    """The block must raise a UserError of a single line that says all these words."""
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def listed(root: Path) -> list[tuple[str, str | None, str | None]]:
    return [(sample.key, sample.label, sample.split) for sample in ImageFolder(str(root)).samples]


def test_a_folder_per_class_gives_labels_sorted_by_key(tmp_path):
    put(tmp_path, "dog/b.png", "cat/z.JPG", "cat/a.png", "bird/deep/er/c.gif")
    assert listed(tmp_path) == [
        ("bird/deep/er/c.gif", "bird", None),
        ("cat/a.png", "cat", None),
        ("cat/z.JPG", "cat", None),
        ("dog/b.png", "dog", None),
    ]
    assert ImageFolder(str(tmp_path)).class_names is None


SPLITS = {
    "train": ["train", "Train", "TRAINING", "training_set", "seg_train", "train2017", "trainset"],
    "val": ["val", "Valid", "validation", "dev", "val-images"],
    "test": ["test", "Testing", "Test Set", "test_data"],
}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in SPLITS.items() for name in names])
def test_a_given_split_is_read_from_the_folders(tmp_path, split, name):
    folders = {"train": "train", "val": "val", "test": "test"} | {split: name}
    put(tmp_path, *(f"{folder}/{label}.png" for folder in folders.values() for label in ("cat/a", "dog/deep/b")))
    expected = [
        (f"{folder}/{place}.png", place[:3], split)
        for split, folder in folders.items()
        for place in ("cat/a", "dog/deep/b")
    ]
    assert sorted(listed(tmp_path)) == sorted(expected)
    assert ImageFolder(str(tmp_path)).layout == f"{tmp_path}/<split>/<class>"


@pytest.mark.parametrize("name", ["contest", "valley", "trainer", "devil", "latest", "rest", "strain", "value"])
def test_a_word_that_only_contains_the_name_of_a_split_is_a_class(tmp_path, name):
    put(tmp_path, f"{name}/x/a.png", "bus/x/b.png")
    assert listed(tmp_path) == sorted([("bus/x/b.png", "bus", None), (f"{name}/x/a.png", name, None)])
    assert ImageFolder(str(tmp_path)).layout == f"{tmp_path}/<class>"


@pytest.mark.parametrize("name", ["train", "Train", "train_station"])
def test_a_class_may_be_called_train_where_it_is_like_the_others(tmp_path, name):
    put(tmp_path, "bus/a.png", "car/b.png", f"{name}/c.png")
    assert {label for _, label, _ in listed(tmp_path)} == {"bus", "car", name}


@pytest.mark.parametrize(
    ("files", "seen"),
    [
        ("Train/cat/a Train/dog/b eval/cat/c eval/dog/d", "Train/cat, Train/dog, eval/cat, eval/dog"),
        ("train/cat/a test/cat/b unlabeled/c", "test/cat, train/cat, unlabeled"),
        ("cat/a dog/b test/c", "cat, dog, test"),
        ("cat/a dog/b train/c val/d", "cat, dog, train, val"),
        ("train/engine/a bus/x/b", "bus/x, train/engine"),
        ("cat/train/a cat/test/b dog/train/c dog/test/d", "cat/test, cat/train, dog/test, dog/train"),
        ("data/train/cat/a data/val/cat/a extra/x/b", "data/train, data/val, extra/x"),
    ],
)
def test_splits_and_classes_mixed_stop_with_what_was_seen(tmp_path, files, seen):
    put(tmp_path, *(f"{file}.png" for file in files.split()))
    with one_line("data.root", "splits or classes", f"holds {seen};", "project.data.Manifest"):
        ImageFolder(str(tmp_path))


def test_a_train_folder_alone_and_empty_siblings_are_a_split(tmp_path):
    put(tmp_path, "train/cat/a.png", "docs/readme.md")
    (tmp_path / "test").mkdir()
    assert listed(tmp_path) == [("train/cat/a.png", "cat", "train")]
    assert ImageFolder(str(tmp_path)).unused == {".md": 1, "folders without images": 2, "images in no class folder": 0}


def test_splits_without_train_are_splits(tmp_path):
    put(tmp_path, "val/cat/a.png", "test/cat/b.png")
    assert listed(tmp_path) == [("test/cat/b.png", "cat", "test"), ("val/cat/a.png", "cat", "val")]
    with one_line("of its 2 images none is in a class folder"):
        ImageFolder(str(put(tmp_path / "flat", "val/a.png", "test/b.png")))


def test_every_file_is_used_or_counted_by_reason(tmp_path):
    used = ["cat/a.png", "cat/b.JPG", "dog/c.HEIC", "dog/d.psd", "dog/e.qoi"]
    system = ["cat/Thumbs.db", "cat/.DS_Store", "desktop.ini", "cat/._a.png", "@eaDir/x.png", "#recycle/cat/y.png"]
    system += ["$RECYCLE.BIN/z.png", "__MACOSX/cat/e.png", "cat/@eaDir/a.png/thumb.jpg", "System Volume Information/w"]
    hidden = ["cat/.b.png", ".git/c.png", "cat/.thumbs/d.png", ".x/Thumbs.db/v.png"]
    others = {".txt": ["cat/n.txt", "notes/m.TXT"], "without an ending": ["cat/png"], ".csv": ["labels.csv"]}
    others |= {"images in no class folder": ["loose.png"], ".pdf": ["cat/a.pdf"], ".mpg": ["dog/film.mpg"]}
    put(tmp_path, *used, *system, *hidden, *(name for names in others.values() for name in names))
    (tmp_path / "owl" / "none").mkdir(parents=True)
    source = ImageFolder(str(tmp_path))
    assert [sample.key for sample in source.samples] == used
    assert source.unused == {
        "system files": len(system),
        "hidden files": len(hidden),
        **{why: len(names) for why, names in others.items()},
        "folders without images": 2,
    }
    files = sum(path.is_file() for path in tmp_path.rglob("*"))
    assert files == len(source.samples) + source.unused.total() - 2
    every = ImageFiles(str(tmp_path))
    assert files == len(every.samples) + every.unused.total() - 2 and len(every.samples) == len(used) + 1


def test_a_plug_in_of_pillow_is_asked(tmp_path, monkeypatch):
    """A made format, registered as plug-ins do it when they are imported, under the name of one that is tried."""
    (tmp_path / "pillow_jxl.py").write_text(
        "from PIL import Image, PngImagePlugin as png\n"
        "class Made(png.PngImageFile):\n    format = 'MADE'\n"
        "Image.register_open('MADE', Made, lambda start: start.startswith(b'\\x89PNG'))\n"
        "Image.register_extension('MADE', '.made')\n"
    )
    root = put(tmp_path / "images", "cat/a.png", "dog/b.png")
    (root / "dog" / "b.png").rename(root / "dog" / "B.MADE")
    assert ImageFolder(str(root)).unused[".made"] == 1
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("EXTENSION", "OPEN"):
        monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    try:
        runpy.run_path(sources.__file__)  # what is done when the module is imported
    finally:
        sys.modules.pop("pillow_jxl", None)
    assert [sample.key for sample in ImageFolder(str(root)).samples] == ["cat/a.png", "dog/B.MADE"]
    assert ImageFolder(str(root)).unused[".made"] == 0


def test_one_folder_under_two_names_is_one_line(tmp_path):
    for name in ("splits", "classes", "within", "crossed"):
        put(tmp_path / name, "test/cat/a.png", "train/cat/b.png", "train/dog/c.png")
    (tmp_path / "splits" / "val").symlink_to("test")
    with one_line("val and test", "one folder under two names", "remove the link", "split off the training images"):
        ImageFolder(str(tmp_path / "splits"))
    (tmp_path / "classes" / "train" / "kitty").symlink_to(tmp_path / "classes" / "train" / "cat")
    with one_line("train/kitty and train/cat", "remove the link"):
        ImageFolder(str(tmp_path / "classes"))
    (tmp_path / "within" / "val").symlink_to(tmp_path / "within" / "train" / "dog")
    with one_line("val and train/dog", "remove the link"):
        ImageFolder(str(tmp_path / "within"))
    (tmp_path / "crossed" / "train" / "cat" / "x").symlink_to(tmp_path / "crossed" / "train" / "dog")
    with one_line("train/dog and train/cat/x", "remove the link"):
        ImageFolder(str(tmp_path / "crossed"))


def test_a_link_as_root_or_to_a_hidden_folder_is_followed(tmp_path):
    root = put(tmp_path / "root", ".store/cat/a.png", "dog/b.png")
    (root / "cat").symlink_to(root / ".store" / "cat")
    (tmp_path / "link").symlink_to(root)
    source = ImageFolder(str(tmp_path / "link"))
    assert [sample.key for sample in source.samples] == ["cat/a.png", "dog/b.png"]
    assert source.unused["hidden files"] == 1


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    put(tmp_path, "cat/a.png", "dog/b.png")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with one_line("data.root", "dog cannot be read (Permission denied)"):
        ImageFolder(str(tmp_path))


def test_two_names_that_differ_in_the_form_of_their_accents_are_one_line(tmp_path):
    put(tmp_path, *(unicodedata.normalize(form, "müsli/a.png") for form in ("NFC", "NFD")))
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("the file system keeps one form")
    with one_line("data.root", "two files are named müsli/a.png"):
        ImageFolder(str(tmp_path))


def test_natural_order():
    names = ["a10b", "a2b", "a2a", "10", "9", "1.0", "1", "01", "1e5", "b", "B", "a", "ä", "2"]
    expected = ["01", "1", "1.0", "1e5", "2", "9", "10", "B", "a", "a2a", "a2b", "a10b", "b", "ä"]
    assert sorted(names, key=natural) == expected


def test_of_a_long_list_the_first():
    assert some(["a", "b"]) == "a, b"
    assert some([str(i) for i in range(12)]).endswith("10, 11") and some([str(i) for i in range(13)]).endswith(
        "11, ..."
    )


def test_hidden_files_and_non_images_are_ignored(tmp_path):
    put(tmp_path, "cat/a.png", "cat/.b.png", "cat/._a.png", ".git/c.png", "cat/.thumbs/d.png", "__MACOSX/cat/e.png")
    put(tmp_path, "cat/notes.txt", "cat/Thumbs.db", "cat/png", "labels.csv")
    assert [key for key, _, _ in listed(tmp_path)] == ["cat/a.png"]


def test_hidden_folders_do_not_hide_a_given_split(tmp_path):
    put(tmp_path, "train/cat/a.png", "test/cat/b.png", ".cache/x.png", "__MACOSX/train/cat/c.png")
    assert listed(tmp_path) == [("test/cat/b.png", "cat", "test"), ("train/cat/a.png", "cat", "train")]


def test_loose_images_have_no_label_and_are_left_out(tmp_path):
    put(tmp_path, "loose.png", "cat/a.png")
    assert [key for key, _, _ in listed(tmp_path)] == ["cat/a.png"]
    with one_line("data.root", "of its 2 images none is in a class folder"):
        ImageFolder(str(put(tmp_path / "other", "a.png", "b.png")))
    with one_line("data.root", "of its 1 images none is in a class folder"):
        ImageFolder(str(put(tmp_path / "split", "train/a.png")))


@pytest.mark.parametrize("source", [ImageFolder, ImageFiles])
def test_links_are_followed_but_not_in_circles(tmp_path, source):
    root = put(tmp_path / "root", "cat/a.png", "dog/b.png")
    put(tmp_path / "elsewhere", "c.png")
    (root / "fox").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "self").symlink_to(root / "cat")
    (root / "dog" / "there").symlink_to(root / "dog" / "back")
    (root / "dog" / "back").symlink_to(root / "dog" / "there")
    assert [sample.key for sample in source(str(root)).samples] == ["cat/a.png", "dog/b.png", "fox/c.png"]


def test_composed_and_decomposed_names_are_the_same(tmp_path):
    composed = unicodedata.normalize("NFC", "Bär/Käse.png")
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    samples = {}
    for form, name in (("nfc", composed), ("nfd", decomposed)):
        source = ImageFolder(str(put(tmp_path / form, name)))
        samples[form] = source.samples
        assert source.content(source.samples[0]) == (tmp_path / form / name).read_bytes()
        assert source.path(source.samples[0]) == tmp_path / form / name
    assert samples["nfc"] == samples["nfd"] == [Sample(composed, "Bär")]


@pytest.mark.parametrize("source", [ImageFolder, ImageFiles])
def test_a_name_that_is_not_utf8_is_an_error(tmp_path, source):
    put(tmp_path, "cat/a.png")
    try:
        os.rename(tmp_path / "cat" / "a.png", os.fsencode(tmp_path / "cat") + b"/caf\xe9.png")
    except OSError:
        pytest.skip("the file system knows UTF-8 names only")
    with one_line("data.root", "caf\\xe9.png", "not UTF-8"):
        source(str(tmp_path))


@settings(max_examples=25, deadline=None)
@given(st.sets(st.lists(st.sampled_from(["a", "b", "c d", "é"]), min_size=1, max_size=4).map(tuple), min_size=1))
def test_any_tree_is_listed_whole(paths):
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), *("/".join(parts) + ".png" for parts in paths))
        expected = {"/".join(parts) + ".png": parts[0] for parts in paths if len(parts) > 1}
        if expected:
            samples = ImageFolder(folder).samples
            assert {sample.key: sample.label for sample in samples} == expected
            assert [sample.key for sample in samples] == sorted(expected)
        assert [sample.key for sample in ImageFiles(folder).samples] == sorted(
            "/".join(parts) + ".png" for parts in paths
        )


def test_content_is_that_of_the_file(tmp_path):
    source = ImageFolder(str(put(tmp_path, "cat/a.png", "dog/a.png")))
    for sample in source.samples:
        assert source.content(sample) == (tmp_path / sample.key).read_bytes()
        assert source.path(sample) == tmp_path / sample.key
    assert source.content(source.samples[0]) != source.content(source.samples[1])


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, "pets/cat/a.png")
    assert [sample.key for sample in ImageFolder("~/pets").samples] == ["cat/a.png"]


def test_image_folder_refuses_what_is_no_folder_of_classes(tmp_path):
    with one_line("data.root is not given", "one sub-folder per class"):
        ImageFolder(None)
    with one_line("data.root", str(tmp_path / "nowhere")):
        ImageFolder(str(tmp_path / "nowhere"))
    put(tmp_path, "file.png")
    with one_line("data.root", str(tmp_path / "file.png"), "Not a directory"):
        ImageFolder(str(tmp_path / "file.png"))
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with one_line("data.root", str(tmp_path / "empty"), "root/<class>/"):
        ImageFolder(str(tmp_path / "empty"))
    with one_line("data.root", "no labelled image"):
        ImageFolder(str(put(tmp_path / "texts", "cat/a.txt")))


def test_image_files_takes_one_file_or_any_nesting(tmp_path):
    put(tmp_path, "b.png", "a/deep/c.jpg", "a/notes.txt", ".hidden/d.png", "photo.unknown")
    whole = ImageFiles(str(tmp_path))
    assert whole.samples == [Sample("a/deep/c.jpg"), Sample("b.png")]
    assert whole.content(whole.samples[1]) == (tmp_path / "b.png").read_bytes()
    one = ImageFiles(str(tmp_path / "a" / "deep" / "c.jpg"))
    assert one.samples == [Sample("c.jpg")]
    assert one.content(one.samples[0]) == (tmp_path / "a/deep/c.jpg").read_bytes()
    # a file that is named on purpose is taken whatever it is called; the survey says whether it is an image
    assert ImageFiles(str(tmp_path / "photo.unknown")).samples == [Sample("photo.unknown")]


def test_image_files_refuses_what_holds_no_image(tmp_path):
    with one_line("data.root is not given", "predict"):
        ImageFiles(None)
    with one_line("data.root", str(tmp_path / "nowhere")):
        ImageFiles(str(tmp_path / "nowhere"))
    put(tmp_path, "notes.txt")
    with one_line("data.root", str(tmp_path), ".txt 1"):
        ImageFiles(str(tmp_path))
