"""The data module as the commands use it: what is opened, refused, left out, drawn and recorded."""

import csv
import json
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from conftest import ROOT, make_folder
from PIL import Image

import project.data.load
from project.classifier import ImageClassifier
from project.data import ImageDataModule, Saturation
from project.errors import UserError
from project.nets import ConvNet
from project.tasks import MultiClass

NET = ["--model.net", "project.nets.ConvNet", "--model.net.init_args.channels", "[4]"]
FOLDER = ["--config", str(ROOT / "configs" / "folder.yaml"), *NET]
ONE = ["--data.image_size", "8", "--data.batch_size", "16", "--trainer.max_epochs", "1"]


@pytest.fixture
def fit(cli, workdir):
    """`fit` for one short epoch on a folder; more options may follow."""

    def run(root: Path, *options: str):
        return cli("fit", *FOLDER, *ONE, "--data.root", root, *options)

    return run


def run_folder(number: int = 0) -> Path:
    return Path("runs/folder") / f"version_{number}"


def record(number: int = 0) -> dict:
    return json.loads((run_folder(number) / "run.json").read_text())


def metrics() -> dict:
    return json.loads((run_folder() / "metrics.json").read_text())


def with_splits(root: Path) -> Path:
    """root/{train,val,test}/<class>, every file with a content of its own."""
    for seed, (split, count) in enumerate({"train": 8, "val": 3, "test": 4}.items()):
        make_folder(root / split, dict.fromkeys(("blue", "red"), count), seed)
    return root


def spoil(*paths: Path) -> None:
    for path in paths:
        path.write_bytes(b"no image at all")


def keys(module: ImageDataModule, name: str) -> set[str]:
    return {module.source.samples[i].key for i in module.splits[name]}


def train(data: ImageDataModule, epochs: int = 1, callbacks: tuple = (), **arguments) -> ImageClassifier:
    model = ImageClassifier(
        lambda *shape: ConvNet(*shape, channels=[4]), data.class_names, data.channels, data.image_size, **arguments
    )
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), use_distributed_sampler=False, **off
    )
    trainer.fit(model, datamodule=data)
    return model


# Damaged images


def test_fit_opens_no_test_image(fit, cli, tmp_path) -> None:
    root = with_splits(tmp_path / "images")
    bad = sorted((root / "test").rglob("*.png"))
    spoil(*bad)
    result = fit(root)
    assert result.code == 0 and result.err == ""
    assert record()["split"]["test"] == 8
    result = cli("test", "--ckpt_path", "best")
    assert result.code == 2 and "8 of the images cannot be read" in result.err
    assert all(path.relative_to(root).as_posix() in result.err for path in bad)
    assert cli("validate", "--ckpt_path", "best").code == 0


def test_bad_images_stop_the_fit_before_it_trains(fit, tmp_path) -> None:
    root = with_splits(tmp_path / "images")
    bad = [root / "train" / "red" / "red_001.png", root / "val" / "blue" / "blue_000.png"]
    spoil(*bad)
    result = fit(root)
    assert result.code == 2
    assert "epoch" not in result.out and not list(Path().glob("runs/*/*/checkpoints/*"))
    assert result.err.startswith("error: 2 of the images cannot be read: ") and "--data.on_bad_image skip" in result.err
    assert "train/red/red_001.png (not an image), val/blue/blue_000.png (not an image)" in result.err


@pytest.mark.slow
def test_bad_images_may_be_left_out(fit, cli, tmp_path) -> None:
    root = with_splits(tmp_path / "images")
    spoil(
        root / "train" / "red" / "red_001.png",
        root / "val" / "blue" / "blue_000.png",
        root / "test" / "red" / "red_002.png",
    )
    result = fit(root, "--data.on_bad_image", "skip")
    assert result.code == 0 and result.err == ""
    assert "left out: images that cannot be read 2" in result.out
    assert set(record()["images_left_out"]) == {"train/red/red_001.png", "val/blue/blue_000.png"}
    result = cli("test", "--ckpt_path", "best")  # the setting is the checkpoint's
    assert result.code == 0, result.err


def test_a_second_fit_decodes_nothing_to_check_it(folder, monkeypatch) -> None:
    decoded = []
    real = project.data.load.load_image
    monkeypatch.setattr(project.data.load, "load_image", lambda *given: decoded.append(1) or real(*given))

    def setup() -> ImageDataModule:
        data = ImageDataModule(str(folder), image_size=8, cache="none")
        data.setup("fit")
        return data

    first = setup()
    assert len(decoded) == len(first.splits["train"]) + len(first.splits["val"]) == 48
    assert setup().loaded["train"].digests == first.loaded["train"].digests and len(decoded) == 48
    path = folder / first.source.samples[first.splits["train"][0]].key
    Image.new("RGB", (9, 9)).save(path)  # only what has changed is looked at again
    assert setup().loaded["train"].digests != first.loaded["train"].digests and len(decoded) == 49


# Classes


def test_a_class_that_is_validated_but_not_trained(fit, tmp_path) -> None:
    root = with_splits(tmp_path / "images")
    make_folder(root / "val", {"green": 2})
    result = fit(root)
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert "the val images have a class 'green' that is unknown: the model knows blue, red" in result.err


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"blue": 9}, ["only one class, 'blue'", "two or more"]),
        ({"blue": 9, "red": 1}, ["too few images", "red (1)", "data.rare_classes"]),
    ],
)
def test_too_few_classes_or_images(fit, tmp_path, counts, words) -> None:
    result = fit(make_folder(tmp_path / "images", counts))
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert all(word in result.err for word in words)


@pytest.mark.slow
def test_a_class_that_the_model_does_not_know(fit, cli, tmp_path) -> None:
    root = with_splits(tmp_path / "images")
    make_folder(root / "test", {"grey": 2})
    assert fit(root).code == 0  # no test image is opened, nor a test class used
    result = cli("test", "--ckpt_path", "best")
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert "class 'grey'" in result.err and "the model knows blue, red" in result.err


@pytest.mark.slow
def test_a_class_that_is_lacking(fit, cli, tmp_path) -> None:
    """The model's names stay in their order, so that a lacking class does not shift the others."""
    root = make_folder(tmp_path / "images")
    options = ("--trainer.max_epochs", "6", "--model.lr", "0.05")
    assert fit(root, *options).code == 0
    new = make_folder(tmp_path / "new", {"green": 5, "red": 5}, seed=9)
    result = cli("test", "--ckpt_path", "best", "--data.root", new, "--data.test_size", "1")
    assert result.code == 0, result.err
    assert "green 100.00%" in result.out and "red 100.00%" in result.out
    assert "test/acc" not in metrics() and "Not added" in result.out  # these are not the run's own test images
    assert "blue 0.00%" not in result.out  # nothing is known of it


# Splits


@pytest.mark.slow
@pytest.mark.parametrize(("size", "command"), [("val_size", "validate"), ("test_size", "test")])
def test_no_images_to_score(fit, cli, folder, size, command) -> None:
    assert fit(folder, f"--data.{size}", "0").code == 0
    result = cli(command, "--ckpt_path", "last")
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert f"data.{size}" in result.err


@pytest.mark.slow
def test_nothing_is_left_to_train(fit, folder) -> None:
    result = fit(folder, "--data.test_size", "1")
    assert result.code == 2 and len(result.err.splitlines()) == 1 and "train" in result.err


@pytest.mark.slow
def test_all_images_of_a_new_folder_are_tested(fit, cli, folder, tmp_path) -> None:
    assert fit(folder).code == 0
    new = make_folder(tmp_path / "new", {"blue": 7, "green": 3, "red": 4}, seed=5)
    tested = []
    real = ImageClassifier.test_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ImageClassifier, "test_step", lambda s, b, i: (tested.extend(b["label"].tolist()), real(s, b, i))[1]
        )
        assert cli("test", "--ckpt_path", "best", "--data.root", new, "--data.test_size", "1").code == 0
    assert Counter(tested) == {0: 7, 1: 3, 2: 4}


def test_folds_validate_every_image_once(folder) -> None:
    modules = [ImageDataModule(str(folder), image_size=8, folds=4, fold=fold) for fold in range(4)]
    assert len({frozenset(keys(module, "test")) for module in modules}) == 1
    validated = Counter(key for module in modules for key in keys(module, "val"))
    assert set(validated.values()) == {1} and len(validated) == 48
    for module in modules:
        assert not keys(module, "train") & (keys(module, "val") | keys(module, "test"))
        module.setup("fit")
        assert len(module.loaded["train"].images) == 36 and len(module.loaded["val"].images) == 12


@pytest.mark.slow
def test_the_split_is_saved_and_named(fit, folder) -> None:
    result = fit(folder)
    (printed,) = re.findall(r"split (\w+)\)", result.out)
    found = record()["split"]
    assert found["fingerprint"] == printed
    rows = list(csv.DictReader((run_folder() / "split.csv").open()))
    assert {row["path"] for row in rows} == {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert all(row["path"].startswith(row["label"] + "/") for row in rows)
    assert Counter(row["split"] for row in rows) == {name: found[name] for name in ("train", "val", "test")}
    assert fit(folder, "--data.split_seed", "1").code == 0
    assert record(1)["split"]["fingerprint"] != printed
    assert fit(folder, "--seed_everything", "5").code == 0
    assert record(2)["split"]["fingerprint"] == printed  # the training seed does not move the split


# Images that the model has seen


def rename(root: Path) -> None:
    for i, path in enumerate(sorted(root.rglob("*.png"))):
        path.rename(path.with_name(f"{(i * 7919) % 1000:04d}_renamed.png"))


@pytest.mark.parametrize(
    "change",
    [pytest.param("another split", marks=pytest.mark.slow), "renamed", pytest.param("added", marks=pytest.mark.slow)],
)
def test_images_that_were_trained_on_are_refused(fit, cli, folder, change) -> None:
    assert fit(folder).code == 0
    options = ["--data.split_seed", "1"] if change == "another split" else []
    trained = {(folder / row["path"]).read_bytes() for row in used("train", "val")}
    if change == "renamed":
        rename(folder)
    elif change == "added":  # 10 more of each class, whose names mix with the others
        more = make_folder(folder.parent / "more", dict.fromkeys(("blue", "green", "red"), 10), seed=3)
        for path in more.rglob("*.png"):
            path.rename(folder / path.parent.name / f"a_{path.name}")
        rename(folder)
    data = ImageDataModule(str(folder), image_size=8, split_seed=int(bool(options)))
    test = [data.source.samples[i].key for i in data.splits["test"]]
    seen = [key for key in test if (folder / key).read_bytes() in trained]
    assert 0 < len(seen) < len(test)  # else this test says nothing

    result = cli("test", "--ckpt_path", "best", *options)
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert f"{len(seen)} of the {len(test)} test images were used to train" in result.err
    assert any(f"example {key}" in result.err for key in seen) and "--data.on_seen_image skip" in result.err
    assert not any(name.startswith("test/") for name in metrics())

    labels = []
    real = ImageClassifier.test_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ImageClassifier, "test_step", lambda s, b, i: (labels.extend(b["index"].tolist()), real(s, b, i))[1]
        )
        result = cli("test", "--ckpt_path", "best", *options, "--data.on_seen_image", "skip")
    assert (
        result.code == 0
        and f"{len(seen)} of the {len(test)} test images were used to train" in result.out
        and "left out" in result.out
    )
    assert {data.source.samples[i].key for i in labels} == set(test) - set(seen)


def used(*splits: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader((run_folder() / "split.csv").open()) if row["split"] in splits]


@pytest.mark.slow
def test_a_test_of_training_images_only_is_refused_even_with_skip(fit, cli, folder, tmp_path) -> None:
    assert fit(folder).code == 0
    seen = used("train")
    for row in seen:
        target = tmp_path / "seen" / row["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / row["path"], target)
    result = cli(
        "test",
        "--ckpt_path",
        "best",
        "--data.root",
        tmp_path / "seen",
        "--data.test_size",
        "1",
        "--data.on_seen_image",
        "skip",
    )
    assert result.code == 2 and len(result.err.splitlines()) == 1 and f"{len(seen)} of the {len(seen)}" in result.err


@pytest.mark.slow
def test_validation_on_training_images_is_said(fit, cli, folder) -> None:
    assert fit(folder).code == 0
    assert "were used to train" not in cli("validate", "--ckpt_path", "best").out
    result = cli("validate", "--ckpt_path", "best", "--data.split_seed", "1")
    assert result.code == 0 and "val images were used to train" in result.out


@pytest.mark.slow
def test_going_on_after_the_folder_changed_is_said(fit, cli, folder) -> None:
    assert fit(folder).code == 0
    result = cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert result.code == 0 and "have changed" not in result.out
    make_folder(folder, {"blue": 30}, seed=8)
    result = cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert result.code == 0, result.err
    assert "images or their split have changed since the checkpoint" in result.out


# Imbalance


class Count(L.Callback):
    """Counts the labels of the training batches."""

    def __init__(self) -> None:
        self.labels: Counter[int] = Counter()
        self.index: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.labels.update(batch["label"].tolist())
        self.index += batch["index"].tolist()


def test_the_balanced_sampler_draws_evenly(tmp_path) -> None:
    root = make_folder(tmp_path / "images", {"blue": 60, "green": 20, "red": 10})
    count, plain = Count(), Count()
    data = ImageDataModule(str(root), image_size=8, batch_size=29, sampler="balanced")
    train(data, epochs=8, callbacks=(count,))
    total = sum(count.labels.values())
    assert total == 8 * len(data.splits["train"])
    for label in range(3):  # within five standard deviations of a third
        assert abs(count.labels[label] - total / 3) < 5 * (total * 2 / 9) ** 0.5
    train(ImageDataModule(str(root), image_size=8, batch_size=29), epochs=1, callbacks=(plain,))
    assert [plain.labels[label] for label in range(3)] == data.class_counts
    assert len(set(plain.index)) == len(plain.index)


def test_balanced_weights_count_the_training_images(tmp_path) -> None:
    root = make_folder(tmp_path / "images", {"blue": 60, "green": 20, "red": 10})
    data = ImageDataModule(str(root), image_size=8, batch_size=16)
    model = train(data, task=partial(MultiClass, class_weights="balanced"))
    counts = np.array(list(Counter(data.source.samples[i].label for i in data.splits["train"]).values()))
    assert model.task.class_weights.tolist() == pytest.approx((counts.sum() / (3 * counts)).tolist())
    assert train(data).task.class_weights.tolist() == [1, 1, 1]


# Sources and formats


def test_a_manifest_with_groups(cli, workdir) -> None:
    root = make_folder(workdir / "images", {"blue": 24, "red": 24})
    rows = [
        (path.relative_to(workdir).as_posix(), path.parent.name, f"{path.parent.name}{i // 4}")
        for name in ("blue", "red")
        for i, path in enumerate(sorted((root / name).iterdir()))
    ]
    with (workdir / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group"), *rows])
    config = ["--data", ROOT / "configs" / "data" / "manifest.yaml", "--data.root", "list.csv"]
    result = cli("fit", *config, *NET, "--data.image_size", "8", "--data.batch_size", "8", "--trainer.max_epochs", "1")
    assert result.code == 0, result.err
    found = list(csv.DictReader((workdir / "runs" / "fit" / "version_0" / "split.csv").open()))
    assert [(row["path"], row["label"], row["group"]) for row in found] == sorted(rows)
    homes = {row["group"]: row["split"] for row in found}
    assert len(homes) == 12 and all(homes[row["group"]] == row["split"] for row in found)
    assert set(homes.values()) == {"train", "val", "test"}
    assert cli("test", "--ckpt_path", "best").code == 0


@pytest.mark.slow
def test_the_image_size_is_measured(fit, cli, folder) -> None:
    result = fit(folder, "--data.image_size", "null")  # 24 x 20 pixels
    assert result.code == 0 and "shape: 3 x 20 x 20" in result.out
    shutil.rmtree(folder)
    for size in (50, 60):  # predict keeps the model's size, whatever the new images have
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (size, size), "red").save(folder / f"{size}.png")
    assert cli("predict", "--ckpt_path", "best", "--data.root", folder).code == 0
    checkpoint = torch.load(run_folder() / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["image_size"] == 20


@pytest.mark.slow
def test_a_grey_folder(fit, cli, tmp_path) -> None:
    root = make_folder(tmp_path / "images")
    for path in root.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    result = fit(root, "--data.channels", "1")
    assert result.code == 0 and "shape: 1 x 8 x 8" in result.out
    weight = torch.load(run_folder() / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"][
        "net.stages.0.0.conv.weight"
    ]
    assert weight.shape == (4, 1, 3, 3)
    assert cli("test", "--ckpt_path", "best").code == 0


@pytest.mark.slow
def test_random_crops_train_alike_with_any_number_of_workers(fit, folder) -> None:
    weights = []
    for number, options in enumerate(
        (["--data.num_workers", "0"], ["--data.num_workers", "2"], ["--seed_everything", "1"])
    ):
        crop = ["--data.random_resized_crop", "[0.3,1]", "--trainer.max_epochs", "2"]
        assert fit(folder, *crop, "--data.num_workers", "0", *options).code == 0
        weights.append(torch.load(run_folder(number) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    one, two, other = weights
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_predict_a_nested_folder_and_a_single_image(fit, cli, workdir, folder) -> None:
    assert fit(folder).code == 0
    (workdir / "new" / "a" / "b").mkdir(parents=True)
    names = ["z.png", "a/y.png", "a/b/x.png"]
    for name, colour in zip(names, ("red", "green", "blue"), strict=True):
        Image.new("RGB", (30, 12), colour).save(workdir / "new" / name)
    tables = []
    for cache in ("memory", "none"):
        result = cli(
            "predict", "--ckpt_path", "best", "--data.root", "new", "--data.cache", cache, "--data.num_workers", "0"
        )
        assert result.code == 0 and "3 predictions" in result.out
        tables.append((workdir / "predictions.csv").read_text())
    assert tables[0] == tables[1]
    rows = {row["path"]: row for row in csv.DictReader(tables[0].splitlines())}
    assert list(rows) == sorted(names)
    assert cli("predict", "--ckpt_path", "best", "--data.root", "new/a/y.png", "--out", "one.csv").code == 0
    (row,) = csv.DictReader((workdir / "one.csv").open())
    assert row["path"] == "y.png" and row["class"] == rows["a/y.png"]["class"]
    assert float(row["probability"]) == pytest.approx(float(rows["a/y.png"]["probability"]), abs=2e-6)


@pytest.mark.parametrize("area", [(0.0, 1.0), (0.9, 0.2), (0.2, 1.1)])
def test_shares_of_a_crop_out_of_range(area) -> None:
    with pytest.raises(UserError, match=r"data\.random_resized_crop must be 0 < smallest <= largest <= 1"):
        ImageDataModule("anywhere", random_resized_crop=area)


def test_ranges_are_checked_by_the_command_line(fit, folder) -> None:
    for key, value in (("batch_size", "0"), ("num_workers", "-1"), ("channels", "2"), ("val_size", "1.5")):
        result = fit(folder, f"--data.{key}", value)
        assert result.code == 2 and f"data.{key}" in result.err and len(result.err.splitlines()) == 1


def test_what_cannot_be_set_up(folder) -> None:
    def setup(stage: str, **arguments) -> None:
        ImageDataModule(str(folder), image_size=8, **arguments).setup(stage)

    with pytest.raises(UserError, match="class 'green' that is unknown: the model knows blue, red"):
        setup("test", class_names=["blue", "red"])
    for stage, arguments in (
        ("validate", {"val_size": 0}),
        ("test", {"test_size": 0}),
        ("fit", {"test_size": 1, "class_names": ["blue", "green", "red"]}),
    ):
        with pytest.raises(UserError, match=r"there are no \w+ images: see data\.test_size and data\.val_size"):
            setup(stage, **arguments)
    with pytest.raises(UserError, match=r"data\.augment: Saturation: grey images have no saturation"):
        setup("fit", channels=1, augment=[Saturation(0.2)])


def test_damaged_images_are_left_out_where_asked(folder) -> None:
    spoil(folder / "red" / "red_001.png")
    data = ImageDataModule(str(folder), image_size=8, on_bad_image="skip", test_size=0)
    data.setup("fit")
    assert data.bad == [("red/red_001.png", "not an image")]
    assert sum(len(part.images) for part in data.loaded.values()) == 59


@pytest.mark.slow
def test_sequential_sampler_trains_in_order_and_goes_on_where_it_stopped(
    fit, cli, folder, workdir, monkeypatch
) -> None:
    seen, stop, real = [], [], ImageClassifier.training_step

    def watch(self, batch, batch_idx):
        if stop and self.global_step == stop[0]:
            stop.clear()
            raise KeyboardInterrupt
        seen.append((self.current_epoch, batch["index"].tolist()))
        return real(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", watch)
    options = ["--data.sampler", "sequential", "--trainer.max_epochs", "2"]
    assert fit(folder, *options).code == 0
    whole, weights = (
        seen.copy(),
        torch.load(run_folder() / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"],
    )
    assert len(whole) == 6 and [rows for _, rows in whole[:3]] == [rows for _, rows in whole[3:]]  # 16 in a batch
    order = [row for _, rows in whole[:3] for row in rows]
    assert order == sorted(set(order)) and len(order) == record()["split"]["train"] > 32
    seen.clear()
    stop.append(4)
    assert fit(folder, *options).code == 130
    assert seen == whole[:4]
    assert cli("fit", "--ckpt_path", "last").code == 0
    assert seen == whole
    resumed = torch.load(run_folder(1) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())


# Images of more than 8 bits, and of too many pixels


def xrays(root: Path, bits: int) -> Path:
    """Two classes of smooth grey images, the same content as 12 bits in files of 16, or as 8 bits."""
    random = np.random.default_rng(0)
    for name, slope in (("left", 1), ("right", -1)):
        (root / name).mkdir(parents=True)
        for i in range(12):
            ramp = np.add.outer(random.normal(0, 200, 12), 1400 + slope * np.linspace(-900, 900, 12))
            values = np.clip(ramp + random.normal(0, 200, (12, 12)), 0, 4095).round()
            values[0, 0] = 4095 if i == 0 else values[0, 0]
            deep = Image.fromarray(values.astype(np.uint16))
            flat = Image.fromarray(np.round(values * 255 / 4095).astype(np.uint8))
            (deep if bits == 12 else flat).save(root / name / f"{i}.png")
    return root


GREY = ["--data.channels", "1"]


def test_twelve_bits_in_files_of_sixteen_are_the_same_images_as_eight_bits(tmp_path) -> None:
    loaded = []
    for bits in (12, 8):
        for cache in ("memory", "none"):
            data = ImageDataModule(
                str(xrays(tmp_path / f"{bits}{cache}", bits)), image_size=12, channels=1, cache=cache
            )
            data.setup("fit")
            assert data.value_range == ([0, 4095] if bits == 12 else [0, 0])
            images = data.loaded["train"].images
            loaded.append(images.__getitems__([(0, row) for row in images.index])["image"])
    assert all(torch.equal(images, loaded[0]) for images in loaded)
    assert len(loaded[0].unique()) > 150


@pytest.mark.slow
def test_the_range_is_kept_for_whatever_uses_the_model(cli, workdir, fit) -> None:
    root = xrays(workdir / "set", 12)
    assert fit(root, *GREY).code == 0
    checkpoint = run_folder() / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    assert content["hyper_parameters"]["value_range"] == [0, 4095]
    assert ImageClassifier.load_from_checkpoint(checkpoint).value_range == [0, 4095]
    dark = workdir / "dark"  # alone, they would be measured as 11 bits
    dark.mkdir()
    for i in range(3):
        with Image.open(root / "left" / f"{i + 1}.png") as image:
            Image.fromarray(np.asarray(image) // 2).save(dark / f"{i}.png")
    tables = []
    for name in (root, dark):
        images = sorted(name.rglob("[123].png"))[:1] if name == root else [dark / "0.png"]
        assert cli("predict", "--ckpt_path", checkpoint, "--data.root", images[0], "--out", "p.csv").code == 0
        tables.append(Path("p.csv").read_text())
    model = ImageClassifier.load_from_checkpoint(checkpoint).eval()
    with Image.open(dark / "0.png") as image:
        half = torch.from_numpy(np.round(np.asarray(image) * (255 / 4095)).astype(np.uint8))
    small = project.data.load.load_image(half.numpy(), project.data.load.ImageFormat(8, 1, "letterbox"))
    probability = model.probabilities(small[None]).max().item()
    assert float(tables[1].splitlines()[1].split(",")[2]) == pytest.approx(probability, abs=2e-6)
    refused = cli("predict", "--ckpt_path", checkpoint, "--data.root", dark, "--data.value_range", "[0,9]")
    assert refused.code == 2 and "data.value_range belongs to the model" in refused.err
    same = cli("predict", "--ckpt_path", checkpoint, "--data.root", dark, "--data.value_range", "[0,4095]")
    assert same.code == 0


@pytest.mark.slow
def test_a_checkpoint_of_before_the_range_takes_files_as_16_bits(cli, workdir, fit) -> None:
    root = xrays(workdir / "set", 12)
    assert fit(root, *GREY).code == 0
    checkpoint = run_folder() / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    del content["hyper_parameters"]["value_range"]
    content["config"] = re.sub(r"\n  value_range: null|\n  max_pixels: \d+", "", content["config"])
    torch.save(content, checkpoint)
    assert cli("validate", "--ckpt_path", checkpoint).code == 0
    assert cli("predict", "--ckpt_path", checkpoint, "--data.root", root / "left").code == 0
    assert list(ImageClassifier.load_from_checkpoint(checkpoint).value_range) == [0, 65535]


def test_a_range_that_is_given_counts_and_a_wrong_one_is_an_error(workdir, fit) -> None:
    root = xrays(workdir / "set", 12)
    data = ImageDataModule(str(root), image_size=12, channels=1, value_range=(1000, 2000))
    data.setup("fit")
    with Image.open(data.source.path(data.source.samples[data.splits["train"][0]])) as image:
        wanted = np.round(np.clip((np.asarray(image) - 1000.0) * 255 / 1000, 0, 255))
    assert np.array_equal(data.loaded["train"].images.pixels[0, 0], wanted)
    for value in ("[4095]", "[0,1,2]", "wide", "4095"):
        result = fit(root, *GREY, "--data.value_range", value)
        assert result.code == 2 and result.err.count("\n") == 1 and "data.value_range" in result.err, result.err
    result = fit(root, *GREY, "--data.value_range", "[0,255]")
    assert result.code == 2 and "far beyond data.value_range 0 to 255" in result.err


def test_too_many_pixels_are_refused_unless_the_key_allows_them(workdir, fit, monkeypatch) -> None:
    """In the processes that read, too: nothing is kept in memory."""
    root = make_folder(workdir / "set", {"blue": 12, "red": 12})
    few = ["--data.cache", "none", "--data.num_workers", "2", "--data.max_pixels"]
    result = fit(root, *few, "479")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "blue_000.png (24x20: more pixels than data.max_pixels 479)" in result.err
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    assert fit(root, *few, "480").code == 0
    for value in ("0", "many", "null"):
        result = fit(root, *few, value)
        assert result.code == 2 and result.err.count("\n") == 1 and "data.max_pixels" in result.err, result.err


@pytest.mark.parametrize("value", ["[64,48]", "64,48", "64x48", "(64, 48)", "[64]"])
def test_images_are_square(workdir, fit, value) -> None:
    result = fit(workdir, "--data.image_size", value)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "data.image_size: expected a whole number" in result.err
    assert "images are square here: give one number, and data.resize says how" in result.err


def test_images_are_square_in_a_file_too(cli, workdir) -> None:
    (workdir / "own.yaml").write_text("data: {image_size: [64, 48], root: .}\n")
    result = cli("fit", *FOLDER, "--config", "own.yaml")
    assert result.code == 2 and result.err.count("\n") == 1 and "images are square here" in result.err


@pytest.mark.parametrize("area", [(0.35, 1.0), (0.08, 1.0), (0.5, 0.5), None])
def test_the_larger_objects_of_random_crops_are_said(folder, capsys, area) -> None:
    """The mean of 1 / sqrt(share) over the range, by quadrature."""
    ImageDataModule(str(folder), image_size=8, random_resized_crop=area).setup("fit")
    out = capsys.readouterr().out
    assert out.count("random_resized_crop") == bool(area)
    if area:
        mean = (np.linspace(*area, 100_001) ** -0.5).mean()
        assert f"objects are about {mean:.2g} times as large as in validation" in out
