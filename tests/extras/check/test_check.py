"""`check` finds what spoils a training before it starts, and warns of nothing else."""

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DIGITS, SMALL, make_folder, slow_but
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from project import data
from project.data import Digits, ImageDataModule
from project.extras.check import check, network
from project.extras.check.augmentations import check_augmentations, swapped
from project.extras.check.findings import Findings
from project.extras.check.images import check_classes
from project.extras.check.network import check_first_loss, check_overfit, compare_init
from project.tasks import MultiClass

NET = ["--model.net", "project.nets.ConvNet", "--model.net.init_args.channels", "[8,16]", "--data.image_size", "16"]
QUICK = ["--steps", "20"]


def lines(out: str, level: str, topic: str = "") -> list[str]:
    return [line for line in out.splitlines() if line.startswith(f"{level:<7} {topic}")]


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """No verdict depends on how busy the machine is, and only a few steps are timed."""
    monkeypatch.setattr(network, "SECONDS", 1e6)
    monkeypatch.setattr(check, "TIMED", 1)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn, but not rendered."""
    monkeypatch.setattr(Findings, "picture", lambda *_: None)


@pytest.fixture
def digit_files(tmp_path: Path) -> Path:
    """The digits as files, 60 of each class."""
    digits = load_digits()
    for label in range(10):
        (tmp_path / "set" / str(label)).mkdir(parents=True)
        for i, image in enumerate(digits.images[digits.target == label][:60]):
            Image.fromarray((image * 15.9).astype(np.uint8)).save(tmp_path / "set" / str(label) / f"{i}.png")
    return tmp_path / "set"


@pytest.mark.slow
def test_the_digits_are_fine(cli, workdir) -> None:
    result = cli("check", *DIGITS, *SMALL, "--model.lr=0.003", "--compare_init=true")
    assert result.code == 0 and not lines(result.out, "warning") and not lines(result.out, "error"), result.out
    topics = (
        "images",
        "leakage",
        "copies",
        "sizes",
        "brightness",
        "classes",
        "first loss",
        "layers",
        "one batch",
        "advice",
        "time",
    )
    for topic in topics:
        assert len(lines(result.out, "ok", topic)) == 1, topic
    assert len(lines(result.out, "ok", "augmentation")) == 2
    assert result.out.splitlines()[-1] == "0 errors, 0 warnings: ready to fit"
    assert "270 batches" in lines(result.out, "ok", "time")[0]
    for name in ("classes", "batch", "layers", "rates", "initialisations"):
        with Image.open(workdir / "runs/check/digits" / f"{name}.png") as image:
            assert min(image.size) > 100
    assert "AdamW, for a batch of 64" in result.out and "trainable" in result.out
    assert [path.name for path in workdir.glob("runs/*")] == ["check"]  # no run


def test_everything_at_once_is_found_in_one_folder(cli, digit_files, no_pictures) -> None:
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
    options = ["--data.source=project.data.Manifest", "--data.root", str(table), "--data.channels=1"]
    # 100 times the learning rate that SMALL has
    net = ["--model.net", "project.nets.ConvNet", "--model.net.init_args.channels", "[16,32]", "--model.lr=2"]
    flip = ["--data.image_size=8", "--data.augment", "[{class_path: project.data.VerticalFlip}]"]
    result = cli("check", *options, *net, *flip)
    assert result.code == 1, result.out
    (bad,) = lines(result.out, "error", "images")
    assert "unreadable: 3 (" in bad and all(name in bad for name in ("1/5.png", "2/6.png", "3/7.png")) and "skip" in bad
    (leak,) = lines(result.out, "error", "leakage")
    assert ": 2 (" in leak and "4/0.png" in leak and "5/4.png" in leak
    (few,) = lines(result.out, "warning", "classes")[:1]
    assert "9: 3" in few
    (flipped,) = lines(result.out, "error", "augmentation") + lines(result.out, "warning", "augmentation")
    assert "VerticalFlip makes 2 look like 5" in flipped
    (rate,) = lines(result.out, "error", "one batch")
    assert "model.lr 2:" in rate and float(rate.split("Fix: --model.lr ")[1].split(",")[0]) <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "good"),
    [(["torch.optim.AdamW"], 0.003), (["torch.optim.SGD", "--model.optimizer.momentum=0.9"], 0.1)],
)
def test_a_rate_a_hundred_times_too_high_is_an_error_and_the_right_one_is_not(cli, workdir, optimizer, good) -> None:
    fine = cli("check", *DIGITS, "--model.optimizer", *optimizer, f"--model.lr={good}")
    assert fine.code == 0 and lines(fine.out, "ok", "one batch"), fine.out
    result = cli("check", *DIGITS, "--model.optimizer", *optimizer, f"--model.lr={100 * good}")
    assert result.code == 1
    (line,) = lines(result.out, "error", "one batch")
    lower = float(line.split("--model.lr ")[1].split(",")[0])
    assert good / 2 < lower < 20 * good


def test_one_batch_is_judged_as_networks_that_learn_nothing_fast_or_at_once_deserve(tmp_path) -> None:
    """A linear layer on separable images: at a usual rate, at one that does nothing, and when it knows them already."""
    images, labels = torch.eye(8).repeat(8, 1), torch.arange(8).repeat(8)

    def level(lr: float, scale: float = 0.0) -> str:
        net = nn.Linear(8, 8)
        with torch.no_grad():
            net.weight.copy_(scale * torch.eye(8))
        task = MultiClass([str(i) for i in range(8)])
        recipe = SimpleNamespace(lr=lr, optimizer=lambda net, batch, lr: torch.optim.SGD(net.parameters(), lr))
        model = SimpleNamespace(task=task, recipe=recipe, batch=64, clip_gradients=lambda optimizer: None)
        found = Findings(tmp_path)
        check_overfit(model, net, images, labels, 100, found)
        return found.levels[0]

    assert [level(5), level(1e-6), level(1e9)] == ["ok", "warning", "error"]
    assert level(1e-6, scale=50) == "ok"


class AllZero(nn.Module):
    """A network whose weights are all 0 at first."""

    def __init__(self, in_channels: int, outputs: int, image_size: int) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.Linear(8, outputs)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(images)).mean((2, 3)))


class ZeroHead(AllZero):
    """Only its head is 0 at first, as in some published networks: that is fine."""

    def __init__(self, in_channels: int, outputs: int, image_size: int) -> None:
        super().__init__(in_channels, outputs, image_size)
        self.conv.reset_parameters()


class Broken(AllZero):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(images)


def test_a_dead_network_is_an_error_and_one_whose_head_starts_at_0_is_not(cli, folder, no_pictures) -> None:
    options = ["--data.root", str(folder), "--data.image_size=16", "--model.lr=0.01", *QUICK]
    result = cli("check", *options, "--model.net", f"{__name__}.AllZero")
    assert result.code == 1
    (line,) = lines(result.out, "error", "one batch")
    assert "no layer has a gradient" in line
    result = cli("check", *options, "--model.net", f"{__name__}.ZeroHead")
    assert not lines(result.out, "error"), result.out


def test_a_network_that_fails_is_a_line_and_no_traceback(cli, folder, no_pictures) -> None:
    result = cli("check", "--data.root", str(folder), "--data.image_size=16", "--model.net", f"{__name__}.Broken")
    assert result.code == 1 and result.err == ""
    (line,) = lines(result.out, "error", "training")
    assert "RuntimeError: " in line and "PROJECT_TRACEBACK=1" in line


ERRORS = {
    "a folder that is not there": ["--data.root", "nowhere", *NET],
    "one class": ["--data.root", "one", *NET],
    "a network that does not fit": ["--data.root", "images", *NET, "--model.net.init_args.kernel_size=4"],
    "a pattern that matches nothing": ["--data.root", "images", *NET, "--model.lr_mult", "{nothing: 2}"],
    "grey images for colour augmentation": [
        *("--data.root", "images", *NET, "--data.channels=1", "--data.augment"),
        "[{class_path: project.data.Saturation, init_args: {amount: 0.2}}]",
    ],
}


@pytest.mark.parametrize("options", ERRORS.values(), ids=ERRORS.keys())
def test_what_cannot_be_built_is_an_error(cli, folder, workdir, no_pictures, options) -> None:
    make_folder(workdir / "one", {"blue": 9})
    result = cli("check", *options)
    assert result.code == 1 and result.err == "", (result.out, result.err)
    assert len(lines(result.out, "error", "settings")) == 1, result.out


BAD = {
    "a misspelt key": (["--data.rot", "x"], "data.rot"),
    "no network": ([], "net is missing"),
    "steps": ([*NET, "--steps", "0"], "steps"),
    "overfit_batches": ([*NET, "--trainer.overfit_batches", "1"], "trainer.overfit_batches"),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD.keys())
def test_a_mistake_in_the_command_is_one_line(cli, folder, workdir, options, words) -> None:
    result = cli("check", "--data.root", str(folder), *options)
    assert result.code == 2 and result.err.count("\n") == 1 and words in result.err, result.err


def test_copies_and_shapes_are_warned_of_and_nothing_is_written_beside_the_pictures(
    cli, folder, workdir, monkeypatch
) -> None:
    shutil.copyfile(folder / "red" / "red_001.png", folder / "blue" / "copy.png")
    (folder / "green" / "cut.png").write_bytes(b"")
    random = np.random.default_rng(0)
    for name, shape in (("tiny", (4, 4, 3)), ("long", (16, 80, 3))):
        Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).save(folder / "green" / f"{name}.png")
    stages, real = [], ImageDataModule.setup
    monkeypatch.setattr(
        ImageDataModule, "setup", lambda self, stage: (stages.append((stage, self)), real(self, stage))[1]
    )
    splits = ["--data.test_size=0.3", "--data.on_bad_image=skip"]
    result = cli("check", "--data.root", str(folder), *NET, *QUICK, *splits, "--out", "pictures")
    assert "blue/copy.png (" in result.out and "red/red_001.png (" in result.out
    assert "green/cut.png" in lines(result.out, "warning", "images")[0]
    sizes = lines(result.out, "warning", "sizes")
    assert len(sizes) == 2 and "tiny.png: 4x4" in sizes[0] and "long.png: 80x16" in sizes[1]
    # The pixels of test images are not used.
    assert {stage for stage, _ in stages} == {"fit"} and all(set(each.loaded) == {"train", "val"} for _, each in stages)
    assert {path.name for path in workdir.iterdir()} == {"images", "pictures"}
    assert all(name.endswith(".png") for name in os.listdir(workdir / "pictures"))


@pytest.mark.parametrize(
    "case",
    slow_but(
        [
            ("12 bits in 16", "ok"),  # measured
            ("12 bits in 16, too wide", "error"),
            ("12 bits in 16, one hot pixel", "error"),
            ("12 bits in 16 in colours", "error"),  # Pillow keeps the upper 8
            ("0 to 16 in 8", "warning"),
            ("drawing", "ok"),
        ],
        ("12 bits in 16, too wide", "error"),
    ),
)
def test_few_levels_stop_deep_images_and_are_warned_of_in_others(cli, tmp_path, no_pictures, case) -> None:
    kind, level = case
    digits, folder = load_digits(), tmp_path / "set"
    for i in range(80):
        image, label = np.kron(digits.images[i], np.ones((2, 3))), digits.target[i] % 2
        noisy = (image * 250 + np.random.default_rng(i).integers(0, 90, image.shape)).astype(np.uint16)  # up to 4089
        if "hot" in kind and i < 40:
            noisy[0, 0] = 65535
        path = folder / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "0 to 16 in 8":
            Image.fromarray(image.astype(np.uint8)).save(path)
        elif kind == "drawing":
            Image.fromarray(image > 7).save(path)
        elif "colours" in kind:
            path.write_bytes(png16(np.repeat(noisy[..., None], 3, axis=2)))
        else:
            Image.fromarray(noisy).save(path)
    options = ["--data.value_range", "[0,65535]"] if "too wide" in kind else []
    result = cli("check", *NET, *QUICK, "--data.root", folder, *options)
    (line,) = [line for line in result.out.splitlines() if " brightness " in line]
    assert line.startswith(level), line
    assert (result.code == 1) == (level == "error"), result.out
    assert level == "ok" or "set --data.value_range" in line


def png16(pixels: np.ndarray) -> bytes:
    """Colours of 16 bits, (H, W, 3), which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_of_a_large_folder_some_are_checked_and_the_time_is_that_of_all(cli, tmp_path, no_pictures) -> None:
    root = make_folder(tmp_path / "large", {"blue": 100, "red": 100})
    options = ["--images", "50", "--data.batch_size=16", "--trainer.max_epochs=10", "--data.sampler=balanced"]
    result = cli("check", "--data.root", str(root), *NET, *QUICK, *options)
    assert result.code == 0 and "Checking one image in 4; --images 200 checks all." in result.out
    assert "80 batches" in lines(result.out, "ok", "time")[0]  # 128 training images / 16, 10 times
    assert "64 to 64 training images each" in result.out
    assert "no image that was checked is in two splits" in result.out


def test_unequal_classes_are_warned_of_unless_they_are_balanced(capsys, tmp_path, no_pictures) -> None:
    def warnings(weighted: bool = False, sampler: str = "shuffle", **counts: int) -> list[str]:
        samples = [SimpleNamespace(label=name) for name, count in counts.items() for _ in range(count)]
        splits = {"train": range(len(samples)), "val": range(1), "test": []}
        source = SimpleNamespace(samples=samples)
        check_classes(
            SimpleNamespace(source=source, splits=splits, class_names=[*counts], sampler=sampler),
            weighted,
            Findings(tmp_path),
        )
        return lines(capsys.readouterr().out, "warning", "classes")

    unequal = warnings(blue=150, red=12)
    assert len(unequal) == 2 and "blue has 150 training images, red has 12" in unequal[1]
    for balanced in (warnings(True, blue=150, red=12), warnings(sampler="balanced", blue=150, red=12)):
        assert len(balanced) == 1 and "without validation images: 1 (red)" in balanced[0]
    assert "red: 4" in warnings(blue=30, red=4)[0]
    assert "upper and lower case: 2 (Cat, cat)" in warnings(blue=20, Cat=20, cat=20, CAT=20)[-1]


@pytest.mark.slow
def test_classes_can_be_balanced_by_the_loss(cli, tmp_path) -> None:
    root = make_folder(tmp_path / "unequal", {"blue": 150, "red": 12})
    options = ["check", "--data.root", str(root), *NET, *QUICK]
    assert "--model.task.class_weights balanced" in lines(cli(*options).out, "warning", "classes")[0]
    for balance in ("--model.task.class_weights=balanced", "--data.sampler=balanced"):
        assert not lines(cli(*options, balance).out, "warning", "classes")


def test_horizontal_flips_break_digits_and_shifts_turns_and_light_do_not(capsys, tmp_path) -> None:
    harmless = [data.RandomCrop(1), data.Brightness(0.3), data.Rotate(15), data.RandomErasing(p=0.5)]
    harmless += [data.Blur(3), data.GaussianNoise(0.1)]
    module = ImageDataModule(source=Digits, image_size=8, channels=1, augment=[*harmless, data.HorizontalFlip()])
    module.setup("fit")
    found = Findings(tmp_path)
    check_augmentations(module, found)
    assert found.levels == ["ok"] * (1 + len(harmless)) + ["warning"]
    assert "HorizontalFlip makes" in capsys.readouterr().out


def test_swapped_is_a_brute_force_count() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    labels = torch.arange(90) % 3
    plain = centres[labels] + 0.05 * torch.randn(90, 2, generator=generator)
    mirrored = plain * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])  # 0 and 1 change places, 2 goes nowhere
    found = swapped(plain, [mirrored], labels, 3)
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
    assert swapped(plain, [plain], labels, 3).max() <= 0  # nothing has changed


def test_the_first_loss_is_held_against_guessing(tmp_path) -> None:
    found = Findings(tmp_path)
    for loss in (2.3, 5.0, 0.01, float("nan")):
        check_first_loss(loss, 2.303, False, found)
    check_first_loss(0.01, 2.303, True, found)  # pretrained weights may know
    assert found.levels == ["ok", "warning", "warning", "error", "ok"]


def test_initialisations_are_compared_as_the_formulas_say() -> None:
    """Of a deep network without norms: kaiming fan_out keeps the variance, xavier loses half of it at each ReLU."""
    torch.manual_seed(0)
    conv: Callable[[], nn.Module] = lambda: nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular", bias=False)  # noqa: E731
    layers = [part for _ in range(12) for part in (conv(), nn.ReLU())]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    curves = compare_init(net, torch.randn(8, 64, 6, 6))
    ratio = {name: (points[11][1] / points[0][1]) ** (1 / 11) for name, points in curves.items()}
    for kind in ("normal", "uniform"):
        assert ratio[f"kaiming_{kind}"] == pytest.approx(1, abs=0.12)
        assert ratio[f"xavier_{kind}"] == pytest.approx(0.5**0.5, abs=0.1)
    assert ratio["default"] == pytest.approx((1 / 6) ** 0.5, abs=0.1)  # variance 1/(3 fan_in), halved by ReLU
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


FROZEN = ["--model.freeze=project.optim.Freeze", "--model.freeze.layers=^stages.0", "--model.freeze.until=1"]
OTHERS = {
    "grey": ["--data.channels=1"],
    "with alpha": ["--data.channels=4"],
    "a transformer": [
        *("--model.net=project.nets.TimmModel", "--model.net.init_args.name=vit_tiny_patch16_224", "--model.lr=0.0005")
    ],
    "from files, cropped, mixed, averaged, accumulated": [
        *("--data.cache=none", "--data.random_resized_crop=[0.3,1]", "--model.mixup=0.2", "--model.cutmix=1"),
        *("--trainer.callbacks+=project.run.EMA", "--trainer.accumulate_grad_batches=2", "--data.num_workers=0"),
    ],
    "a schedule of torch": ["--model.schedule=torch.optim.lr_scheduler.StepLR", "--model.schedule.step_size=1"],
    "without an end": ["--trainer.max_epochs=-1", "--trainer.max_time=00:00:01:00"],
    "pictures": ["--config", str(Path(__file__).parents[3] / "configs/look.yaml")],
}


def test_a_run_with_frozen_layers_and_a_schedule_can_be_checked(cli, folder, no_pictures) -> None:
    options = ["--model.stem_lr=0.5", "--model.schedule=project.optim.Cosine", "--model.warmup=1"]
    clip = ["--trainer.gradient_clip_val=1", "--model.optimizer=project.optim.SWATS"]
    result = cli("check", "--data.root", str(folder), *NET, *FROZEN, *options, *clip, "--steps=10")
    assert result.code == 0 and result.err == "", (result.out, result.err)


@pytest.mark.slow
@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS.keys())
def test_other_runs_can_be_checked(cli, folder, options) -> None:
    base = [] if any("TimmModel" in option for option in options) else NET[:4]
    size = ["--data.image_size=32"] if not base else NET[4:]
    result = cli("check", "--data.root", str(folder), *base, *size, *options, "--data.batch_size=16", "--steps=10")
    assert result.code == 0 and result.err == "", (result.out, result.err)
    assert lines(result.out, "ok", "time")


@pytest.mark.slow
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
    assert result.code == 0 and "almost without training images: 1000 (" in result.out, result.out


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_optimizer_with_a_closure_can_be_checked(cli, workdir) -> None:
    options = ["--model.optimizer=torch.optim.LBFGS", "--model.lr=0.5", "--model.channels_last=false"]
    result = cli("check", *DIGITS, *SMALL[:-2], *options, "--model.schedule=null")
    assert result.code == 0 and lines(result.out, "ok", "one batch"), result.out


def test_a_run_without_a_step_is_an_error(cli, folder, no_pictures) -> None:
    result = cli("check", "--data.root", str(folder), *NET, "--trainer.max_epochs=0")
    assert result.code == 2 and "trainer.max_epochs" in result.err and result.err.count("\n") == 1


def test_what_fit_refuses_is_an_error(cli, folder, no_pictures) -> None:
    swa = "--trainer.callbacks+=lightning.pytorch.callbacks.StochasticWeightAveraging"
    result = cli("check", "--data.root", str(folder), *NET, swa, "--trainer.callbacks.swa_lrs=0.1")
    assert result.code == 1 and "project.run.EMA" in result.out


@pytest.mark.slow
def test_a_rate_that_does_nothing_is_warned_of(cli, workdir) -> None:
    assert lines(cli("check", *DIGITS, *SMALL[:-2], "--model.lr=1e-9").out, "warning", "one batch")
