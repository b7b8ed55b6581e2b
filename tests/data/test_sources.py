import os
import tempfile
import unicodedata
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from project.data.sources import ImageFiles, ImageFolder, Sample
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


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_a_given_split_is_read_from_the_folders(tmp_path, val):
    put(tmp_path, "train/cat/a.png", "train/dog/deep/b.png", f"{val}/cat/c.png", "test/dog/d.png")
    assert sorted(listed(tmp_path)) == sorted(
        [
            ("train/cat/a.png", "cat", "train"),
            ("train/dog/deep/b.png", "dog", "train"),
            (f"{val}/cat/c.png", "cat", "val"),
            ("test/dog/d.png", "dog", "test"),
        ]
    )


@pytest.mark.parametrize("others", [["bus"], ["bus", "test"], ["__old"]])
def test_train_beside_other_classes_is_a_class(tmp_path, others):
    put(tmp_path, "train/engine/a.png", *(f"{name}/x/b.png" for name in others))
    assert {label for _, label, _ in listed(tmp_path)} == {"train", *others}
    assert {split for _, _, split in listed(tmp_path)} == {None}


def test_a_train_folder_alone_and_empty_siblings_are_a_split(tmp_path):
    put(tmp_path, "train/cat/a.png")
    (tmp_path / "test").mkdir()
    assert listed(tmp_path) == [("train/cat/a.png", "cat", "train")]


def test_val_and_test_without_train_are_classes(tmp_path):
    put(tmp_path, "val/a.png", "test/b.png")
    assert listed(tmp_path) == [("test/b.png", "test", None), ("val/a.png", "val", None)]


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
    with one_line("data.root", str(tmp_path / "file.png"), "no labelled image"):
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
    with one_line("data.root", str(tmp_path), ".png"):
        ImageFiles(str(tmp_path))
