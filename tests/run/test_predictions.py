"""The CSV file of predictions."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from project.errors import UserError
from project.run.predictions import PredictionWriter


def write(
    path: Path, names: list[str], keys: list[str], batches: list[tuple[list[int], torch.Tensor]], bad=(), **options
) -> list[dict]:
    """Hand the batches over as Lightning would; the rows of the file."""
    data = SimpleNamespace(source=SimpleNamespace(samples=[SimpleNamespace(key=key) for key in keys]), bad=list(bad))
    trainer = SimpleNamespace(world_size=1, is_global_zero=True, datamodule=data)
    writer = PredictionWriter(str(path), **options)
    for index, probabilities in batches:
        writer.on_predict_batch_end(
            trainer, None, {"index": torch.tensor(index), "probabilities": probabilities}, None, 0
        )
    writer.on_predict_end(trainer, SimpleNamespace(class_names=names))
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 12])
def test_columns_and_order(tmp_path, capsys, classes) -> None:
    names = [f"class {k}" for k in range(classes)]
    probabilities = torch.rand(7, classes, generator=torch.Generator().manual_seed(classes)).softmax(dim=1)
    rows = write(tmp_path / "p.csv", names, [f"{i}.png" for i in range(9)], [
        ([8, 2, 5], probabilities[:3]), ([0, 1], probabilities[3:5]), ([7, 3], probabilities[5:])
    ])  # fmt: skip
    expected = ["path", "class", "probability"]
    for n in range(2, min(classes, 5) + 1):
        expected += [f"class_{n}", f"probability_{n}"]
    assert list(rows[0]) == expected
    assert [row["path"] for row in rows] == [f"{i}.png" for i in (0, 1, 2, 3, 5, 7, 8)]  # those that were given
    for row, k in zip(rows, (3, 4, 1, 6, 2, 5, 0), strict=True):
        best = sorted(zip(probabilities[k].tolist(), names, strict=True), reverse=True)[:5]
        assert [row["class"], *(row[f"class_{n}"] for n in range(2, len(best) + 1))] == [name for _, name in best]
        assert row["probability"] == f"{best[0][0]:.6f}" and all(value for value in row.values())
    assert f"7 predictions in {tmp_path / 'p.csv'}.\n" == capsys.readouterr().out


def test_names_are_quoted_where_they_must_be(tmp_path) -> None:
    names = ["cat, tabby", 'a "dog"', "Äpfel\nund Birnen"]
    (row,) = write(tmp_path / "p.csv", names, ["ö, é.png"], [([0], torch.tensor([[0.2, 0.5, 0.3]]))])
    assert list(row.values()) == ["ö, é.png", names[1], "0.500000", names[2], "0.300000", names[0], "0.200000"]


def test_images_that_could_not_be_read_are_told(tmp_path, capsys) -> None:
    bad = [("broken.png", "the file is empty"), ("text.jpg", "not an image")]
    write(tmp_path / "p.csv", ["a", "b"], ["x.png"], [([0], torch.tensor([[0.2, 0.8]]))], bad)
    out, err = capsys.readouterr()
    assert "1 prediction in" in out and "2 could not be read" in out
    assert err.splitlines() == [f"not predicted: {key}: {why}" for key, why in bad]


def test_nothing_to_predict_leaves_a_header(tmp_path) -> None:
    assert write(tmp_path / "p.csv", ["a", "b", "c"], [], []) == []
    assert (
        tmp_path / "p.csv"
    ).read_text().strip() == "path,class,probability,class_2,probability_2,class_3,probability_3"


def test_an_interrupted_run_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("old")
    with pytest.raises(IndexError):  # a sample that does not exist, as any failure half-way
        write(path, ["a", "b"], ["x.png"], [([0, 1], torch.rand(2, 2))])
    assert path.read_text() == "old"
    write(path, ["a", "b"], ["x.png"], [([0], torch.rand(1, 2))])
    assert path.read_text() != "old" and [file.name for file in tmp_path.iterdir()] == ["p.csv"]


def test_paths_that_cannot_be_written(tmp_path, monkeypatch) -> None:
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "no" / "p.csv", "there is no folder")):
        with pytest.raises(UserError) as caught:
            PredictionWriter(str(path))
        assert words in str(caught.value) and "out: " in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PredictionWriter("~/p.csv").path == tmp_path / "p.csv"


def test_below_the_bound_a_class_is_uncertain(tmp_path, capsys) -> None:
    probabilities = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [0.51, 0.49]])
    keys = [f"{i}.png" for i in range(4)]
    rows = write(tmp_path / "p.csv", ["a", "b"], keys, [([3, 1, 2, 0], probabilities)], min_prob=0.5)
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2", "guess"]
    assert "uncertain" not in [row["class"] for row in rows]  # a probability of just the bound is sure enough
    rows = write(tmp_path / "p.csv", ["a", "b"], keys, [([3, 1, 2, 0], probabilities)], min_prob=0.6)
    assert [row["class"] for row in rows] == ["uncertain", "uncertain", "a", "b"]
    assert (rows[0]["guess"], rows[0]["probability"], rows[3]["guess"]) == ("a", "0.510000", "b")
    assert capsys.readouterr().out.endswith(", 2 of them uncertain.\n")


@pytest.mark.parametrize("bound", [0, -1, 1.001, float("nan")])
def test_bounds_that_are_no_probability(tmp_path, bound) -> None:
    with pytest.raises(UserError, match="min_prob must be above 0 and at most 1"):
        PredictionWriter(str(tmp_path / "p.csv"), bound)


def test_three_classes_through_the_command(cli, folder, tiny_net, workdir) -> None:
    options = ["--data.root", folder, *tiny_net, "--trainer.max_epochs", "1"]
    assert cli("fit", *options).code == 0
    assert cli("predict", "--ckpt_path", "best", "--data.root", folder, "--out", "p.csv").code == 0
    rows = list(csv.DictReader((workdir / "p.csv").open()))
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    for row in rows:
        assert {row["class"], row["class_2"], row["class_3"]} == {"blue", "green", "red"}
        assert sum(float(row[f"probability{n}"]) for n in ("", "_2", "_3")) == pytest.approx(1, abs=3e-6)


@pytest.mark.parametrize("options", [{}, {"min_prob": 0.5}])
def test_the_probabilities_of_all_classes(tmp_path, options) -> None:
    names = [
        "class",
        "probability",
        "guess",
        "a",
        "b",
        "c",
        "probability of a",
    ]  # none takes the place of another column
    given = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    with_all = write(tmp_path / "p.csv", names, list("xyz"), [([2, 0, 1], given)], all_probs=True, **options)
    without = write(tmp_path / "q.csv", names, list("xyz"), [([2, 0, 1], given)], **options)
    for row, plain, k in zip(with_all, without, (1, 2, 0), strict=True):
        found = [row.pop(f"probability of {name}") for name in names]
        assert found == [f"{p:.6f}" for p in given[k].tolist()] and row == plain
