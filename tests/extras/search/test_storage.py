"""Storages that are not one: one line, without the password."""

import pytest

from project.errors import UserError
from project.extras.search.storage import open_storage, storage_errors


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("study.db", "Could not parse"),
        ("journal:/nowhere/at/all/study.log", "No such file"),
        ("nonsense://x", "nonsense"),
        ("sqlite:///{folder}/text.db", "not a database"),
        ("journal:{folder}/text.db", "Expecting value"),
        ("postgresql+pg8000://me:secret@127.0.0.1:9/none", "127.0.0.1"),
        ("mysql+pymysql://me:secret@127.0.0.1:9/none", "127.0.0.1"),
        ("mysql+nodriver://me:secret@127.0.0.1:9/none", "nodriver"),
    ],
)
def test_a_storage_that_is_not_one(address, words, tmp_path) -> None:
    (tmp_path / "text.db").write_text("these are\nsome words\nand no database\n" * 100)
    with pytest.raises(UserError, match=words) as caught, storage_errors():
        open_storage(address.format(folder=tmp_path)).get_all_studies()
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
