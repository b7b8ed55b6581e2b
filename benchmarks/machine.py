"""What the rules of `project.run.machine` and `project.__main__` rest on: precision, memory format, threads, waiting.

    python -m benchmarks.machine steps   [--rounds 5] [--networks digits resnet9_b64 ...]   BF16_FROM, THREADS_FROM
    python -m benchmarks.machine waiting [--rounds 5] [--busy 0 1 4] [--seconds 4]          SPINS
    python -m benchmarks.machine memory  [--rounds 5]                                       MALLOC

steps    Milliseconds of a training step in fp32 and bf16 (autocast), channels_last and contiguous, with all threads
         and with one; what the rules choose, and how much slower that is than the fastest.
waiting  Milliseconds of a step beside 0, 1 and 4 processes that do nothing but use a core, for each way in which
         threads wait for one another, and with one thread; as a multiple of libgomp's own way when idle.
memory   Milliseconds of a step and the highest memory of the process, with glibc's own settings and with ours.

The settings take turns within each round, in another order each time, so that a slow moment of the machine meets them
all; the tables have medians over the rounds, and their ratios. Beside them stands the machine's matrix throughput in
the same minutes. All is written to machine_<what>.json as well. A quiet machine; about 20, 60, 10 minutes on two cores.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median

import torch
import torchvision
from torch import nn

from project.__main__ import MALLOC, SPINS
from project.classifier import ImageClassifier
from project.nets import ConvNet, ResNet, ResNet9
from project.run.machine import THREADS, precision_for, threads_for, work_of
from project.run.machine import WAITING as WAITS

TV = torchvision.models
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {  # network, batch, channels, pixels
    "digits": (lambda: ConvNet(1, 10, 8, channels=[64, 128, 256], convs_per_block=2), 64, 1, 8),
    "small_28": (lambda: ConvNet(1, 10, 28, channels=[8, 16, 32]), 64, 1, 28),
    "convnet_28": (lambda: ConvNet(1, 10, 28, channels=[64, 128, 256], convs_per_block=2), 128, 1, 28),
    "resnet9_b16": (lambda: ResNet9(3, 10, 32, widths=[32, 64, 128, 256]), 16, 3, 32),
    "resnet9_b64": (lambda: ResNet9(3, 10, 32, widths=[32, 64, 128, 256]), 64, 3, 32),
    "resnet9_b256": (lambda: ResNet9(3, 10, 32, widths=[32, 64, 128, 256]), 256, 3, 32),
    "resnet18_32": (lambda: ResNet(3, 10, 32, depths=[2, 2, 2, 2], width=64, block="basic"), 128, 3, 32),
    "resnet18_224": (lambda: TV.resnet18(num_classes=10), 16, 3, 224),
    "resnet50_128": (lambda: TV.resnet50(num_classes=10), 8, 3, 128),
    "densenet121_128": (lambda: TV.densenet121(num_classes=10), 8, 3, 128),
    "regnet_x_400_128": (lambda: TV.regnet_x_400mf(num_classes=10), 16, 3, 128),
    "mobilenet_v2_224": (lambda: TV.mobilenet_v2(num_classes=10), 16, 3, 224),
    "efficientnet_b0_224": (lambda: TV.efficientnet_b0(num_classes=10), 16, 3, 224),
    "convnext_tiny_128": (lambda: TV.convnext_tiny(num_classes=10), 8, 3, 128),
    "vit_b_16_224": (lambda: TV.vit_b_16(num_classes=10), 4, 3, 224),
}
WAITING = {
    "libgomp's own": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    f"{SPINS} spins": {"GOMP_SPINCOUNT": SPINS},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
NAMES = {-4: "MALLOC_MMAP_MAX_", -1: "MALLOC_TRIM_THRESHOLD_", -2: "MALLOC_TOP_PAD_"}  # mallopt's options as variables
MEMORY = {"glibc's own": {}, "ours": {NAMES[key]: str(value % 2**34) for key, value in MALLOC.items()}}
VARIABLES = {*NAMES.values(), *THREADS, *WAITS}
CHILD = ["digits", "resnet9_b64", "resnet9_b256"]  # that `waiting` looks at
PHOTOS = ["resnet9_b64", "resnet18_224", "mobilenet_v2_224", "efficientnet_b0_224"]  # that `memory` looks at


class Step:
    """Training steps on one batch."""

    def __init__(self, name: str, bf16: bool, channels_last: bool, threads: int) -> None:
        make, batch, channels, pixels = NETWORKS[name]
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.net, self.bf16, self.threads = make().train().to(memory_format=layout), bf16, threads
        self.images = torch.randn(batch, channels, pixels, pixels).contiguous(memory_format=layout)
        self.labels = torch.randint(10, (batch,))
        self.optimizer = torch.optim.AdamW(self.net.parameters())

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = nn.functional.cross_entropy(self.net(self.images).float(), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def milliseconds(self, seconds: float) -> float:
        """Of a step, over as many steps as fill these seconds, two at least."""
        torch.set_num_threads(self.threads)
        start, steps = time.perf_counter(), 0
        while steps < 2 or time.perf_counter() - start < seconds:
            self()
            steps += 1
        return (time.perf_counter() - start) / steps * 1e3


def throughput() -> dict[str, float]:
    """GFLOP/s of a product of two 2048 x 2048 matrices."""
    found = {}
    for kind in (torch.float32, torch.bfloat16):
        one = torch.randn(2048, 2048).to(kind)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            one @ one
            times.append(time.perf_counter() - start)
        found[str(kind).removeprefix("torch.")] = 2 * 2048**3 / median(times[2:]) / 1e9
    return found


def chosen(name: str, every: int) -> tuple[bool, int, float]:
    """What the rules take for a network: bf16, threads; and its GFLOP a step."""
    make, batch, channels, pixels = NETWORKS[name]
    classes = list(map(str, range(10)))
    work = work_of(ImageClassifier(lambda *_: make(), classes, channels, pixels), batch)
    precision, _ = precision_for("cpu", torch.cpu._is_avx512_bf16_supported(), work)
    threads = min(every, threads_for(None, {}, None, work))
    return precision == "bf16-mixed", threads, work.flops / 1e9


def steps(names: list[str], rounds: int) -> dict:
    every, found = torch.get_num_threads(), {}
    settings = list(product((False, True), (True, False), sorted({1, every}, reverse=True)))
    titles = [f"{'bf16' if b else 'fp32'}, {'NHWC' if c else 'NCHW'}, {t}" for b, c, t in settings]
    print(
        f"| network | GFLOP | {' | '.join(titles)} | chosen | / fastest |\n|---|---:|{'---:|' * len(settings)}---|---:|"
    )
    for name in names:
        made = {each: Step(name, *each) for each in settings}
        for step in made.values():
            step.milliseconds(0)  # warm-up
        times: dict[tuple, list[float]] = {each: [] for each in settings}
        for _ in range(rounds):
            for each in random.sample(settings, len(settings)):
                times[each].append(made[each].milliseconds(0.3))
        medians = {each: median(values) for each, values in times.items()}
        bf16, threads, gflop = chosen(name, every)
        mine = bf16, True, threads
        slower = median(a / b for a, b in zip(times[mine], times[min(medians, key=medians.get)], strict=True))
        words = f"{'bf16' if bf16 else 'fp32'}, {threads}"
        row = " | ".join(f"{medians[each]:.1f}" for each in settings)
        print(f"| {name} | {gflop:.2f} | {row} | {words} | {slower:.2f} |", flush=True)
        found[name] = {"gflop": gflop, "ms": dict(zip(titles, medians.values(), strict=True)), "chosen": words}
    return found


def child(name: str, seconds: float, environment: dict[str, str]) -> tuple[float, float]:
    """Milliseconds of a step in a process of its own, as the rules would run it, and its highest memory in MB."""
    kept = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    command = [sys.executable, "-m", "benchmarks.machine", "child", "--networks", name, "--seconds", str(seconds)]
    said = subprocess.check_output(command, env=kept | environment, text=True)
    return tuple(json.loads(said.splitlines()[-1]))


def as_child(name: str, seconds: float) -> None:
    import resource

    bf16, threads, _ = chosen(name, torch.get_num_threads())
    step = Step(name, bf16, True, 1 if os.environ.get("OMP_NUM_THREADS") == "1" else threads)
    step.milliseconds(0)
    print(json.dumps([step.milliseconds(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


@contextmanager
def busy(count: int):
    """That many processes use a core each."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def turns(settings: dict[str, dict[str, str]], name: str, rounds: int, seconds: float) -> dict[str, list[list[float]]]:
    """Milliseconds and MB of each round, the settings in another order each time."""
    found: dict[str, list[list[float]]] = {title: [] for title in settings}
    for _ in range(rounds):
        for title in random.sample(list(settings), len(settings)):
            found[title].append(child(name, seconds, settings[title]))
    return found


def waiting(names: list[str], rounds: int, counts: list[int], seconds: float) -> dict:
    found: dict[str, dict] = {}
    print(f"| network | beside | {' | '.join(WAITING)} |\n|---|---:|{'---:|' * len(WAITING)}")
    for name in names:
        idle = None
        for count in counts:
            with busy(count):
                times = turns(WAITING, name, rounds, seconds)
            medians = {title: median(ms for ms, _ in values) for title, values in times.items()}
            idle = idle or medians["libgomp's own"]
            row = " | ".join(f"{ms:.1f} ({ms / idle:.2f})" for ms in medians.values())
            print(f"| {name} | {count} | {row} |", flush=True)
            found[f"{name}, {count}"] = medians
    return found


def memory(names: list[str], rounds: int, seconds: float) -> dict:
    found = {}
    print("| network | glibc's own, ms | ours, ms | ratio | MB | MB |\n|---|---:|---:|---:|---:|---:|")
    for name in names:
        times = turns(MEMORY, name, rounds, seconds)
        (own, own_mb), (ours, mb) = (
            [median(column) for column in zip(*values, strict=True)] for values in times.values()
        )
        ratio = median(b[0] / a[0] for a, b in zip(*times.values(), strict=True))
        print(f"| {name} | {own:.1f} | {ours:.1f} | {ratio:.2f} | {own_mb:.0f} | {mb:.0f} |", flush=True)
        found[name] = {"own": [own, own_mb], "ours": [ours, mb], "ratio": ratio}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "waiting", "memory", "child"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help="(default: those that matter to it)")
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 4], help="processes beside (default: 0 1 4)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement (default: 4)")
    options = parser.parse_args()
    if options.what == "child":
        as_child(options.networks[0], options.seconds)
        return
    before = throughput()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, GFLOP/s {before}, {options.rounds} rounds\n")
    if options.what == "steps":
        found = steps(options.networks or list(NETWORKS), options.rounds)
    elif options.what == "waiting":
        found = waiting(options.networks or CHILD, options.rounds, options.busy, options.seconds)
    else:
        found = memory(options.networks or PHOTOS, options.rounds, options.seconds)
    after = throughput()
    print(f"\nGFLOP/s at the end {after}")
    result = {"gflops": [before, after], "torch": torch.__version__, "rounds": options.rounds, "found": found}
    Path(f"machine_{options.what}.json").write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
