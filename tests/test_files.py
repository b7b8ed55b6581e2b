"""Files that are written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from project.errors import UserError
from project.files import output_path, written_whole


def write(path: Path, error: BaseException) -> None:
    """Fail half-way."""
    with written_whole(path) as draft:
        draft.write_text("half")
        raise error


def test_the_draft_takes_the_place_of_the_old_file(tmp_path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with written_whole(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
        assert (draft.parent, draft.suffix) == (tmp_path, ".onnx") and draft.name.startswith(".")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), UserError("x"), SystemExit(1)])
def test_after_any_failure_all_is_as_before(tmp_path, error) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(type(error)) as caught:
        write(path, error)
    assert caught.value is error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line(tmp_path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(UserError) as caught:
        write(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(caught.value) == f"{path} cannot be written (No space left on device)"
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(UserError), written_whole(path):
        pass
    assert path.read_text() == "old"


def test_the_longest_name_that_the_disk_takes_can_be_written(tmp_path) -> None:
    for path in (tmp_path / f"{'x' * 250}.onnx", tmp_path / f"{'ö' * 125}.onnx"):
        with written_whole(path) as draft:
            draft.write_text("new")
        assert path.read_text() == "new"


def test_a_link_is_followed_and_stays(tmp_path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    with written_whole(output_path(str(tmp_path / "link.csv"), "p.csv")) as draft:
        draft.write_text("new")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real.csv").read_text() == "new"


def test_where_nothing_can_be_written(tmp_path, monkeypatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    places = {
        tmp_path: "is a folder; give a file, for example --out some.onnx",
        tmp_path / "pipe": "is not an ordinary file",
        tmp_path / "no" / "model.onnx": f"there is no folder {tmp_path / 'no'}",
        tmp_path / f"{'x' * 300}.onnx": "out: ",
    }
    for path, words in places.items():
        with pytest.raises(UserError) as caught, written_whole(output_path(str(path), "some.onnx")) as draft:
            draft.write_text("x")
        assert words in str(caught.value) and str(caught.value).startswith("out: ") and "\n" not in str(caught.value)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match="that can be written to; make it first"):
        output_path(str(tmp_path / "model.onnx"), "model.onnx")


def test_the_home_folder_and_relative_paths(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_path("~/model.onnx", "x") == tmp_path / "model.onnx"
    monkeypatch.chdir(tmp_path)
    assert output_path("model.onnx", "x") == Path(tmp_path, "model.onnx")
