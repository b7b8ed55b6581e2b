"""A plain PyTorch training loop, the yardstick of what `fit` costs: configs/cifar10_fast.yaml by hand.

    python -m benchmarks.raw_loop FOLDER [--model fast] [--epochs 3] [--batch 160] [--precision bf16-mixed] [...]

FOLDER holds train/<class>/* and perhaps test/<class>/*, all of one size. Of the project it has the networks and Muon
alone; reading, shuffling, flips, shifts, rates and loss are its own, as short and as fast as they come: the images of
an epoch are changed all at once. No Lightning, no metrics, no logs, no checkpoints: the sum of the losses is all that
is kept. At the end it scores the test images, without and with test-time flips.

--model resnet18 has the recipe of configs/model/resnet18.yaml, but torch's first weights; only its speed matters.

It prints the seconds of each epoch. A CPU or one GPU.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from project.nets import FastNet, ResNet
from project.optim import Muon

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
SHIFT = 2  # pixels
SMOOTHING = {"fast": 0.05, "resnet18": 0.1}
Images = tuple[Tensor, Tensor]  # pixels uint8 (N, 3, H, W), labels int64 (N,)
Trained = tuple[nn.Module, Optimizer, LRScheduler]


def read(folder: Path, device: str) -> Images:
    """Decode all images."""
    pixels, labels = [], []
    for label, name in enumerate(sorted(path.name for path in folder.iterdir())):
        files = sorted((folder / name).iterdir())
        pixels += [np.asarray(Image.open(file).convert("RGB")) for file in files]
        labels += [label] * len(files)
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(device), torch.tensor(labels, device=device)


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (255 * torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return pixels.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def shifted(pixels: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror some of the images, and move all by up to SHIFT pixels over their mirrored borders."""
    size, result = pixels.shape[-1], torch.empty_like(pixels)
    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    index = torch.arange(-SHIFT, size + SHIFT, device=pixels.device).abs()
    index = torch.minimum(index, 2 * (size - 1) - index)  # mirrored at both borders
    padded = pixels[:, :, index][:, :, :, index]
    place = torch.randint((2 * SHIFT + 1) ** 2, (len(pixels),), device=pixels.device)
    for number in range((2 * SHIFT + 1) ** 2):
        y, x = divmod(number, 2 * SHIFT + 1)
        chosen = place == number
        result[chosen] = padded[chosen, :, y : y + size, x : x + size]
    return result


def fast(images: Images, widths: list[int], total: int, batch: int) -> Trained:
    """The network of configs/model/fastnet.yaml, and its rates along a line."""
    pixels, labels = images
    net = FastNet(3, int(labels.max()) + 1, pixels.shape[-1], widths=widths).to(pixels.device)
    net.prepare(normalised(pixels[:: -(-len(pixels) // 5000)]))
    matrices = [conv.weight for conv in net.stages.modules() if isinstance(conv, nn.Conv2d)]
    known = set(map(id, matrices))
    others = [p for p in net.parameters() if id(p) not in known]
    groups = [{"params": matrices, "lr": 0.18}, {"params": others, "lr": 0.18 * 0.9, "rest_lr": 1.0, "muon": False}]
    optimizer = Muon(groups, 0.18, momentum=0.6, ns_steps=5, rest="sgd", rest_momentum=0.85)
    return net, optimizer, LambdaLR(optimizer, lambda step: 1 - step / total)


def resnet18(images: Images, widths: list[int], total: int, batch: int) -> Trained:
    pixels, labels = images
    net = ResNet(3, int(labels.max()) + 1, pixels.shape[-1]).to(pixels.device)
    rate, decay = 0.1 * batch / 128, 5e-4
    optimizer = torch.optim.SGD(net.parameters(), rate, 0.9, weight_decay=decay, nesterov=True, fused=True)
    return net, optimizer, OneCycleLR(optimizer, rate, total, cycle_momentum=False)


def train(args: argparse.Namespace) -> dict[str, list]:
    """Train and score; the seconds and images of each epoch, and the accuracies."""
    device, kind = "cuda" if torch.cuda.is_available() else "cpu", KINDS[args.precision]
    pixels, labels = images = read(args.folder / "train", device)
    full, rest = divmod(len(labels), args.batch)
    steps = args.batches or full + (rest > 1)  # batch norm cannot take a last batch of a single image
    make = {"fast": fast, "resnet18": resnet18}[args.model]
    net, optimizer, schedule = make(images, args.widths, args.epochs * steps, args.batch)
    net = net.to(memory_format=torch.channels_last).train()
    scaler = torch.amp.GradScaler(device, enabled=kind is torch.float16)
    mirrored, seconds = torch.rand(len(labels), device=device) < 0.5, []
    for epoch in range(args.epochs):
        start, loss_of = time.perf_counter(), torch.zeros((), device=device)
        order = torch.randperm(len(labels), device=device)[: steps * args.batch]
        changed = shifted(pixels[order], mirrored[order] ^ bool(epoch % 2))  # both sides in every two epochs
        for some, truth in zip(changed.split(args.batch), labels[order].split(args.batch), strict=True):
            if len(some) < 2:
                continue
            with torch.autocast(device, kind, enabled=kind is not None):
                logits = net(normalised(some))  # (N, classes)
            loss = F.cross_entropy(logits.float(), truth, label_smoothing=SMOOTHING[args.model])
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            loss_of += loss.detach() * len(some)
        mean_loss = loss_of.item() / len(order)  # also waits for the GPU, so it belongs to the time
        seconds.append(time.perf_counter() - start)
        print(f"epoch {epoch + 1}/{args.epochs}  loss {mean_loss:.4f}  {seconds[-1]:.2f} s", flush=True)
    accuracies = score(net.eval(), args.folder / "test", device, kind)
    return {"seconds": seconds, "images": [len(order)] * args.epochs, "accuracies": accuracies}


@torch.no_grad()
def score(net: nn.Module, folder: Path, device: str, kind: torch.dtype | None) -> list[float]:
    """Accuracy on the test images, without and with flips."""
    if not folder.is_dir():
        return []
    pixels, labels = read(folder, device)
    logits = []
    with torch.autocast(device, kind, enabled=kind is not None):
        for some in map(normalised, pixels.split(500)):
            logits.append(torch.stack([net(some).float(), net(some.flip(-1)).float()]))
    plain, mirror = torch.cat(logits, 1)  # (N, classes) each
    return [(each.argmax(1) == labels).float().mean().item() for each in (plain, plain + mirror)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds train/<class>/*")
    parser.add_argument("--model", choices=list(SMOOTHING), default="fast")
    parser.add_argument("--widths", type=int, nargs="+", default=[96, 320, 320], help="of the fast network")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=160)
    parser.add_argument("--batches", type=int, help="of each epoch (default: all)")
    parser.add_argument("--precision", choices=list(KINDS), default="bf16-mixed")
    parser.add_argument("--threads", type=int, help="(default: torch's own number)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    found = train(args)
    if found["accuracies"]:
        print("test accuracy {:.2%}, with flips {:.2%}".format(*found["accuracies"]))
    if args.out:
        args.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
