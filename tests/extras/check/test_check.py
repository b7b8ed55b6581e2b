"""`check` finds what spoils a training before it begins, and alarms about nothing else."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS, SMALL, make_folder
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from project.extras.check.findings import Findings
from project.extras.check.labels import swapped
from project.extras.check.start import check_first_loss, compare_init

NET = ["--model.net", "project.nets.ConvNet", "--model.net.init_args.channels", "[8,16]", "--data.image_size", "16"]
QUICK = ["--steps", "20"]


def lines(out: str, level: str, topic: str = "") -> list[str]:
    return [line for line in out.splitlines() if line.startswith(f"{level:<5} {topic}")]


@pytest.fixture
def digit_files(tmp_path: Path) -> Path:
    """The digits as files, 60 of each class."""
    digits = load_digits()
    for label in range(10):
        (tmp_path / "set" / str(label)).mkdir(parents=True)
        for i, image in enumerate(digits.images[digits.target == label][:60]):
            Image.fromarray((image * 15.9).astype(np.uint8)).save(tmp_path / "set" / str(label) / f"{i}.png")
    return tmp_path / "set"


def test_the_digits_are_fine(cli, workdir) -> None:
    result = cli("check", *DIGITS)
    assert result.code == 0 and not lines(result.out, "look") and not lines(result.out, "stop"), result.out
    for topic in (
        "images",
        "leakage",
        "sizes",
        "classes",
        "augmentation",
        "first loss",
        "spread",
        "signal",
        "one batch",
    ):
        assert len(lines(result.out, "ok", topic)) == 1, topic
    for topic in ("advice", "time", "memory"):
        assert len(lines(result.out, "ok", topic)) == 1, topic
    assert "13 ok" not in result.out and result.out.splitlines()[-1] == "12 ok, 0 look, 0 stop: go ahead: fit"
    for name in ("classes", "images", "batch", "spread", "rates"):
        with Image.open(workdir / "runs/check/digits" / f"{name}.png") as image:
            assert min(image.size) > 100
    assert "AdamW, for a batch of 64" in result.out and "trainable" in result.out


def test_everything_at_once_is_found_in_one_folder(cli, digit_files) -> None:
    cut = (digit_files / "1" / "5.png").read_bytes()
    (digit_files / "1" / "5.png").write_bytes(cut[: len(cut) // 2])
    (digit_files / "2" / "6.png").write_bytes(b"")
    (digit_files / "3" / "7.png").write_text("not an image")
    for path in (digit_files / "9").iterdir():
        if int(path.stem) > 4:
            path.unlink()  # 3 of the rest train
    # A manifest says the split, so that it is known what lies where.
    rows = []
    for path in sorted(digit_files.rglob("*.png")):
        i = int(path.stem)
        rows.append([path, path.parent.name, "test" if i % 5 == 4 else "val" if i % 5 == 3 else "train"])
    for here, there in (("4/0.png", "4/3.png"), ("5/1.png", "5/4.png")):  # train and val, train and test
        shutil.copyfile(digit_files / here, digit_files / there)
    table = digit_files.parent / "table.csv"
    table.write_text("path,label,split\n" + "\n".join(",".join(map(str, row)) for row in rows))
    options = [
        "--data.source=project.data.Manifest",
        "--data.root",
        str(table),
        "--data.channels=1",
        "--data.image_size=8",
    ]
    net = [
        "--model.net",
        "project.nets.ConvNet",
        "--model.net.init_args.channels",
        "[16,32]",
        "--model.lr=2",
    ]  # 100 times what SMALL has
    flip = ["--data.augment", "[{class_path: project.data.VerticalFlip}]"]
    result = cli("check", *options, *net, *flip)
    assert result.code == 1, result.out
    (bad,) = lines(result.out, "stop", "images")
    assert (
        "3 cannot be read" in bad and all(name in bad for name in ("1/5.png", "2/6.png", "3/7.png")) and "skip" in bad
    )
    (leak,) = lines(result.out, "stop", "leakage")
    assert "2 images are in more than one split" in leak and "4/0.png" in leak and "5/4.png" in leak
    (few,) = lines(result.out, "look", "classes")[:1]
    assert "9 (3)" in few
    (flipped,) = [line for line in lines(result.out, "stop") + lines(result.out, "look") if "augmentation" in line]
    assert "VerticalFlip makes 2 look like 5" in flipped
    (rate,) = lines(result.out, "stop", "one batch")
    assert "model.lr 2:" in rate and float(rate.split("Mend: --model.lr ")[1].split(",")[0]) <= 0.2
    assert "cannot be read" in cli("check", *options, *net, "--data.on_bad_image=skip").out


@pytest.mark.parametrize(
    ("optimizer", "good"),
    [(["torch.optim.AdamW"], 0.003), (["torch.optim.SGD", "--model.optimizer.momentum=0.9"], 0.1)],
)
def test_a_rate_a_hundred_times_too_high_stops_and_the_right_one_does_not(cli, workdir, optimizer, good) -> None:
    fine = cli("check", *DIGITS, "--model.optimizer", *optimizer, f"--model.lr={good}")
    assert fine.code == 0 and lines(fine.out, "ok", "one batch"), fine.out
    result = cli("check", *DIGITS, "--model.optimizer", *optimizer, f"--model.lr={100 * good}")
    assert result.code == 1
    (line,) = lines(result.out, "stop", "one batch")
    mend = float(line.split("--model.lr ")[1].split(",")[0])
    assert good / 2 < mend < 20 * good


class AllZero(nn.Module):
    """A network whose weights all begin at 0."""

    def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.Linear(8, num_classes)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(images)).mean((2, 3)))


class ZeroHead(AllZero):
    """Only its head begins at 0, as some published networks do: that is fine."""

    def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.conv.reset_parameters()


class Broken(AllZero):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(images)


def test_a_dead_network_stops_and_one_that_only_begins_with_a_head_of_0_does_not(cli, folder) -> None:
    options = ["--data.root", str(folder), "--data.image_size=16", "--model.lr=0.01", *QUICK]
    result = cli("check", *options, "--model.net", f"{__name__}.AllZero")
    assert result.code == 1
    (line,) = lines(result.out, "stop", "signal")
    assert "no layer has a gradient, and from conv on every image gives the same" in line
    assert not lines(result.out, "stop", "one batch")  # said once
    result = cli("check", *options, "--model.net", f"{__name__}.ZeroHead")
    assert lines(result.out, "ok", "signal"), result.out


def test_a_network_that_breaks_is_a_line_and_no_traceback(cli, folder) -> None:
    result = cli("check", "--data.root", str(folder), "--data.image_size=16", "--model.net", f"{__name__}.Broken")
    assert result.code == 1 and result.err == ""
    assert "stop  training      it breaks: RuntimeError: " in result.out


STOPS = {
    "a folder that is not there": (["--data.root", "nowhere", *NET], "images"),
    "one class": (["--data.root", "one", *NET], "images"),
    "an argument out of range": (["--data.root", "images", *NET, "--data.test_size=2"], "images"),
    "a network that does not fit": (["--data.root", "images", *NET, "--model.net.init_args.kernel_size=4"], "model"),
    "a pattern that matches nothing": (["--data.root", "images", *NET, "--model.lr_mult", "{nothing: 2}"], "model"),
    "no validation for early stopping": (
        [
            *("--data.root", "images", *NET, "--data.val_size=0"),
            *("--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=val/loss"),
        ],
        "model",
    ),
    "grey images for colour augmentation": (
        [
            "--data.root",
            "images",
            *NET,
            "--data.channels=1",
            "--data.augment",
            "[{class_path: project.data.Saturation, init_args: {amount: 0.2}}]",
        ],
        "images",
    ),
}


@pytest.mark.parametrize(("options", "topic"), STOPS.values(), ids=STOPS.keys())
def test_what_cannot_be_built_is_a_stop(cli, folder, workdir, options, topic) -> None:
    make_folder(workdir / "one", {"blue": 9})
    result = cli("check", *options)
    assert result.code == 1 and result.err == "", (result.out, result.err)
    assert len(lines(result.out, "stop", topic)) == 1, result.out


BAD = {
    "a misspelt key": (["--data.rot", "x"], "data.rot: there is no such key; did you mean data.root?"),
    "no network": ([], "net is missing"),
    "a checkpoint": ([*NET, "--ckpt_path", "last"], "ckpt_path"),
    "steps": ([*NET, "--steps", "0"], "steps must be 1 or more, not 0"),
    "images": ([*NET, "--images", "5"], "images must be 100 or more, not 5"),
    "a file for the pictures' folder": ([*NET, "--out", "file"], "out: no folder can be made at file"),
    "overfit_batches": ([*NET, "--trainer.overfit_batches", "1"], "trainer.overfit_batches is not supported"),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD.keys())
def test_a_mistake_in_the_command_is_one_line(cli, folder, workdir, options, words) -> None:
    (workdir / "file").write_text("")
    result = cli("check", "--data.root", str(folder), *options)
    assert result.code == 2 and result.err.count("\n") == 1 and words in result.err, result.err


def test_copies_labels_and_shapes_are_looked_at(cli, folder) -> None:
    shutil.copyfile(folder / "red" / "red_000.png", folder / "red" / "copy.png")
    shutil.copyfile(folder / "red" / "red_001.png", folder / "blue" / "copy.png")
    random = np.random.default_rng(0)
    for name, shape in (("tiny", (4, 4, 3)), ("long", (16, 80, 3))):
        Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).save(folder / "green" / f"{name}.png")
    result = cli("check", "--data.root", str(folder), *NET, *QUICK)
    assert "blue/copy.png" in result.out and "two classes (blue, red)" in result.out
    sizes = lines(result.out, "look", "sizes")
    assert len(sizes) == 2 and "tiny.png (4x4)" in sizes[0] and "long.png (80x16)" in sizes[1]


def test_a_large_folder_is_sampled_and_the_time_is_that_of_all(cli, tmp_path) -> None:
    root = make_folder(tmp_path / "large", {"blue": 200, "red": 200})
    result = cli(
        "check",
        "--data.root",
        str(root),
        *NET,
        *QUICK,
        "--images",
        "100",
        "--data.batch_size=16",
        "--trainer.max_epochs=10",
    )
    assert result.code == 0 and "Looking at 100 of 400 images, evenly taken; --images 400 looks at all." in result.out
    assert "160 batches of" in lines(result.out, "ok", "time")[0]  # 256 training images / 16, 10 times
    assert "128 to 128 training images each" in result.out


def test_more_images_of_one_class_are_said_unless_they_are_balanced(cli, tmp_path) -> None:
    root = make_folder(tmp_path / "unequal", {"blue": 150, "red": 12})
    options = ["check", "--data.root", str(root), *NET, *QUICK]
    assert "--model.class_weights balanced" in lines(cli(*options).out, "look", "classes")[0]
    for balance in ("--model.class_weights=balanced", "--data.sampler=balanced"):
        assert not lines(cli(*options, balance).out, "look", "classes")


def test_horizontal_flips_break_digits_and_shifts_turns_and_light_do_not(cli, workdir) -> None:
    flip = cli("check", *DIGITS, *SMALL, *QUICK, "--data.augment", "[{class_path: project.data.HorizontalFlip}]")
    assert any("HorizontalFlip makes" in line for line in flip.out.splitlines())
    kinds = {
        "RandomCrop": "padding: 1",
        "Brightness": "amount: 0.3",
        "Rotate": "degrees: 15",
        "RandomErasing": "p: 0.5",
    }
    kinds |= {"Blur": "kernel_size: 3", "GaussianNoise": "std: 0.1"}
    harmless = ", ".join(
        f"{{class_path: project.data.{name}, init_args: {{{value}}}}}" for name, value in kinds.items()
    )
    fine = cli("check", *DIGITS, *SMALL, *QUICK, "--data.augment", f"[{harmless}]")
    (line,) = lines(fine.out, "ok", "augmentation")
    assert line.endswith("RandomCrop, Brightness, Rotate, RandomErasing, Blur, GaussianNoise"), fine.out


def test_swapped_is_a_brute_force_count() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    labels = torch.arange(90) % 3
    plain = centres[labels] + 0.05 * torch.randn(90, 2, generator=generator)
    mirrored = plain * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])  # 0 and 1 change places, 2 goes nowhere
    found = swapped(plain, mirrored[None], labels, 3)
    distances = torch.cdist(plain, plain).fill_diagonal_(torch.inf).min(1).values
    limit = float(distances.quantile(0.99))
    counts = np.zeros((3, 3))
    for i in range(90):
        others = [(float((mirrored[i] - plain[j]).norm()), int(labels[j])) for j in range(90) if j != i]
        distance, label = min(others)
        if distance <= limit:
            counts[int(labels[i]), label] += 1 / 30
    expected = min(counts[0, 1], counts[1, 0])
    assert expected > 0.5 and found[0, 1] == pytest.approx(expected, abs=1e-4) and found[0, 1] == found[1, 0]
    assert found[0, 2] == found[1, 2] == 0 and found.diag().sum() == 0
    assert swapped(plain, plain[None], labels, 3).max() <= 0  # nothing has changed


def test_the_first_loss_is_held_against_guessing(capsys) -> None:
    found = Findings()
    for loss in (2.3, 5.0, 0.01, float("nan")):
        check_first_loss(loss, 10, False, found)
    check_first_loss(0.01, 10, True, found)  # published weights may know
    assert [level for level, _, _ in found.lines] == ["ok", "look", "look", "stop", "ok"]


def test_initialisations_are_compared_as_the_formulas_say(cli, workdir) -> None:
    """Of a deep network without norms: kaiming fan_out keeps the spread, xavier loses half the variance at each ReLU."""
    torch.manual_seed(0)
    layers = [
        part
        for _ in range(12)
        for part in (nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular", bias=False), nn.ReLU())
    ]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    curves = compare_init(net, torch.randn(16, 64, 8, 8))
    ratio = {name: (points[11][1] / points[0][1]) ** (1 / 11) for name, points in curves.items()}
    for kind in ("normal", "uniform"):
        assert ratio[f"kaiming_{kind}"] == pytest.approx(1, abs=0.12)
        assert ratio[f"xavier_{kind}"] == pytest.approx(0.5**0.5, abs=0.1)
    assert ratio["default"] == pytest.approx((1 / 6) ** 0.5, abs=0.1)  # variance 1/(3 fan_in), halved by ReLU
    before = {name: value.clone() for name, value in net.state_dict().items()}
    compare_init(net, torch.randn(2, 64, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert cli("check", *DIGITS, *SMALL, *QUICK, "--compare_init=true").code == 0
    assert (workdir / "runs/check/digits/initialisations.png").is_file()


OTHERS = {
    "grey": (["--data.channels=1"], 0),
    "with alpha": (["--data.channels=4"], 0),
    "a transformer": (
        ["--model.net=project.nets.TimmModel", "--model.net.init_args.name=vit_tiny_patch16_224", "--model.lr=0.0005"],
        0,
    ),
    "from files, cropped, mixed, averaged, accumulated": (
        [
            *("--data.cache=none", "--data.random_resized_crop=[0.3,1]", "--model.mixup=0.2", "--model.cutmix=1"),
            *("--trainer.callbacks+=project.run.EMA", "--trainer.accumulate_grad_batches=2", "--data.num_workers=0"),
        ],
        0,
    ),
    "frozen, by layers, scheduled": (
        [
            *(
                "--model.freeze=project.optim.Freeze",
                "--model.freeze.layers=^stages.0",
                "--model.freeze.until=1",
                "--model.layer_decay=0.5",
            ),
            *("--model.schedule=project.optim.Cosine", "--model.warmup=1", "--model.optimizer=project.optim.SWATS"),
        ],
        0,
    ),
    "a schedule of torch": (["--model.schedule=torch.optim.lr_scheduler.StepLR", "--model.schedule.step_size=1"], 0),
    "without an end": (["--trainer.max_epochs=-1", "--trainer.max_time=00:00:01:00"], 0),
    "pictures": (["--config", str(Path(__file__).parents[2] / "configs/look.yaml")], 0),
}


@pytest.mark.parametrize(("options", "code"), OTHERS.values(), ids=OTHERS.keys())
def test_other_runs_can_be_checked(cli, folder, options, code) -> None:
    base = [] if any("TimmModel" in option for option in options) else NET[:4]
    size = ["--data.image_size=32"] if not base else NET[4:]
    result = cli("check", "--data.root", str(folder), *base, *size, *options, "--data.batch_size=16", "--steps=10")
    assert result.code == code and result.err == "", (result.out, result.err)
    assert lines(result.out, "ok", "time") and lines(result.out, "ok", "memory")


def test_a_thousand_classes_can_be_checked(cli, tmp_path, tiny_net) -> None:
    rows, random = [], np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for i in range(2000):
        path = tmp_path / "set" / f"{i}.png"
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        rows.append(f"{path},class {i % 1000:04d},{'train' if i < 1000 else 'val'}")
    (tmp_path / "set.csv").write_text("\n".join(["path,label,split", *rows]))
    options = ["--data.source=project.data.Manifest", "--data.root", str(tmp_path / "set.csv"), "--data.test_size=0"]
    result = cli("check", *options, *tiny_net, *QUICK)
    assert result.code == 0 and "1000 of 1000 have next to no training images" in result.out, result.out


def test_a_fit_after_a_check_ends_with_the_same_weights_and_best_means_no_check(cli, workdir) -> None:
    options = [*DIGITS, *SMALL, "--trainer.max_epochs=1"]
    assert cli("fit", *options).code == 0
    latest = (workdir / "runs/latest").read_text()
    assert cli("check", *options, *QUICK).code == 0
    assert (workdir / "runs/latest").read_text() == latest
    assert cli("fit", *options).code == 0
    one, two = (
        torch.load(workdir / f"runs/digits/version_{i}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for i in range(2)
    )
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_the_pixels_of_test_images_are_not_used(cli, folder, monkeypatch) -> None:
    from project.data.module import ImageDataModule

    stages, real = [], ImageDataModule.setup
    monkeypatch.setattr(
        ImageDataModule, "setup", lambda self, stage: (stages.append((stage, self)), real(self, stage))[1]
    )
    assert cli("check", "--data.root", str(folder), *NET, *QUICK).code == 0
    assert {stage for stage, _ in stages} == {"fit"} and all(set(data.loaded) == {"train", "val"} for _, data in stages)


def test_an_optimizer_with_a_closure_can_be_checked(cli, workdir) -> None:
    options = [
        "--model.optimizer=torch.optim.LBFGS",
        "--model.lr=0.5",
        "--model.channels_last=false",
        "--model.schedule=null",
    ]
    result = cli("check", *DIGITS, *SMALL[:-2], *options)
    assert result.code == 0 and lines(result.out, "ok", "one batch"), result.out


@pytest.mark.parametrize("option", ["--trainer.max_epochs=0", "--trainer.limit_train_batches=0"])
def test_a_run_without_a_step_stops(cli, workdir, option) -> None:
    result = cli("check", *DIGITS, *SMALL, option)
    assert result.code == 1 and lines(result.out, "stop", "training"), result.out


def test_a_rate_that_does_nothing_is_looked_at(cli, workdir) -> None:
    assert lines(cli("check", *DIGITS, *SMALL[:-2], "--model.lr=1e-9").out, "look", "one batch")


def test_leaks_that_were_not_looked_for_are_not_denied(cli, tmp_path) -> None:
    root = make_folder(tmp_path / "large", {"blue": 200, "red": 200})
    out = cli("check", "--data.root", str(root), *NET, *QUICK, "--images", "100").out
    assert "no image of the 100 looked at is in two splits" in out


def test_nothing_is_written_beside_the_pictures(cli, folder, workdir) -> None:
    assert cli("check", "--data.root", str(folder), *NET, *QUICK, "--out", "pictures").code == 0
    assert {path.name for path in workdir.iterdir()} == {"images", "pictures"}
    assert all(name.endswith(".png") for name in os.listdir(workdir / "pictures"))
