"""Grad-CAM against the formula, and on images whose object is in a known corner; nothing of the network is changed."""

import pytest
import torch
from torch import Tensor, nn

from project.errors import UserError
from project.extras.look.gradcam import cam_layer, grad_cam
from project.nets import ConvNet, ResNet

SIZE = 16


def corner_images(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with a cross (class 0) or a ring (class 1) of 5x5 pixels in one of the corners, or nothing (class 2).

    Without the third, the lack of a ring would speak for a cross, and it is lacking everywhere.

    Returns:
        Images, labels, and corners 0 to 3.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, SIZE, SIZE, generator=generator) * 0.3
    labels = torch.randint(3, (count,), generator=generator)
    corners = torch.randint(4, (count,), generator=generator)
    cross, ring = torch.zeros(5, 5), torch.ones(5, 5)
    cross[2], cross[:, 2], ring[1:4, 1:4] = 1, 1, 0
    for image, label, corner in zip(images, labels.tolist(), corners.tolist(), strict=True):
        top, left = 1 + corner // 2 * 9, 1 + corner % 2 * 9
        image[0, top : top + 5, left : left + 5] += (cross, ring, 0)[label]
    return images, labels, corners


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)]
    body = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*body, nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace=True), *head)


@pytest.fixture(scope="module")
def taught() -> nn.Module:
    net = small_net()
    images, labels, _ = corner_images(600, 0)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(20):
        for part in torch.randperm(600).split(60):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(net(images[part]), labels[part]).backward()
            optimizer.step()
    return net.eval()


def test_the_mass_is_in_the_corner_of_the_object(taught) -> None:
    images, labels, corners = corner_images(150, 1)
    assert (taught(images).argmax(1) == labels).float().mean() > 0.95
    images, labels, corners = (part[labels < 2] for part in (images, labels, corners))
    maps = grad_cam(taught, cam_layer(taught, images), images, labels)
    assert maps.shape == (len(images), SIZE, SIZE) and maps.min() >= 0 and maps.max() <= 1
    quarters = maps.view(-1, 2, 8, 2, 8).sum((2, 4)).flatten(1)  # (N, 4): mass in each corner
    share = quarters[torch.arange(len(images)), corners] / quarters.sum(1)
    speaks = quarters.sum(1) > 0
    assert speaks.float().mean() > 0.9
    assert (quarters.argmax(1) == corners)[speaks].float().mean() > 0.95 and share[speaks].mean() > 0.7


def test_a_map_is_that_of_the_formula(taught) -> None:
    images, labels, _ = corner_images(4, 2)
    body, head = taught[:5], taught[5:]
    activation = body(images).detach().requires_grad_()
    head(activation.clone()).gather(1, labels[:, None]).sum().backward()
    weights = activation.grad.numpy().mean((2, 3))
    expected = (weights[:, :, None, None] * activation.detach().numpy()).sum(1).clip(0)
    found = grad_cam(taught, "4", images, labels)
    for one, other in zip(expected, found, strict=True):
        large = nn.functional.interpolate(torch.tensor(one)[None, None], (SIZE, SIZE), mode="bilinear")[0, 0]
        top = large.max() if large.max() > 0 else 1
        assert torch.allclose(other, large / top, atol=1e-4)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_of_the_network_changes(around) -> None:
    net = small_net().train()
    net[1].training = False
    net[0].weight.requires_grad_(False)
    net[4].weight.grad = torch.ones_like(net[4].weight)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [layer.training for layer in net.modules()]
    state = torch.get_rng_state()
    images, labels, _ = corner_images(3, 3)
    with around():
        maps = grad_cam(net, "4", images.clone(), labels)
    assert maps.isfinite().all() and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [layer.training for layer in net.modules()] == modes and not any(
        layer._forward_hooks for layer in net.modules()
    )
    assert (net[4].weight.grad == 1).all() and net[6:][-1].weight.grad is None


def test_hooks_are_gone_when_the_pass_fails() -> None:
    net = small_net()
    with pytest.raises(RuntimeError):
        grad_cam(net, "0", torch.rand(2, 5, 8, 8), torch.zeros(2, dtype=torch.long))
    assert not any(layer._forward_hooks for layer in net.modules()) and net.training


def test_bad_layers() -> None:
    images, labels, _ = corner_images(2, 4)
    with pytest.raises(AttributeError, match="conv"):
        grad_cam(small_net(), "conv", images, labels)
    with pytest.raises(UserError, match="6 gives no map"):
        grad_cam(small_net(), "6", images, labels)
    with pytest.raises(UserError, match="no map"):
        grad_cam(small_net(), "8", images, labels)
    unused = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(392, 3))
    unused.extra = nn.Conv2d(1, 2, 3)
    unused.forward = lambda images: (unused.extra(images), unused[:3](images))[1]
    with pytest.raises(RuntimeError):
        grad_cam(unused, "extra", images, labels)


def test_the_last_layer_whose_output_is_a_map() -> None:
    net = ConvNet(1, 3, 8, channels=[4, 8, 8])
    images = torch.zeros(2, 1, 8, 8)
    layer = cam_layer(net, images)
    module = net.get_submodule(layer)
    assert isinstance(module, nn.ReLU)  # of the last block but one: behind it the map is 1x1
    assert grad_cam(net, layer, images, torch.zeros(2, dtype=torch.long)).shape == (2, 8, 8)
    pooled = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1), nn.Flatten()
    )  # as in squeeze-excitation
    assert cam_layer(pooled, images) == "0"
    assert cam_layer(ResNet(3, 5, 32), torch.zeros(1, 3, 32, 32)).startswith("stages")


def test_no_layer_without_convolutions_or_below_attention() -> None:
    from torchvision.models import VisionTransformer

    assert cam_layer(nn.Linear(2, 2), torch.zeros(1, 2)) is None
    vit = VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=4)
    assert cam_layer(vit, torch.zeros(1, 3, 32, 32)) is None
