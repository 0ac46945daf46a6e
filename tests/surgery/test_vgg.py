"""torchvision's VGG, trained a little on handwritten digits: channels and neurons cut, the function kept."""

import copy

import pytest
import torch
from torch import nn

import lightning_embed as le

vgg = pytest.importorskip("torchvision.models.vgg", reason="needs torchvision, of the extra test")


@pytest.fixture(scope="module")
def trained():
    """A network, images for calibration and images that it never sees otherwise."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.tensor(digits.images).float()[:, None] / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    net = vgg.VGG(vgg.make_layers([8, 12, "M", 16, "M"], batch_norm=True), num_classes=10)
    net.features[0] = nn.Conv2d(1, 8, 3, padding=1)
    net.avgpool = nn.AdaptiveAvgPool2d(2)
    net.classifier = nn.Sequential(nn.Linear(64, 48), nn.ReLU(True), nn.Dropout(0.2), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(8):
        for rows in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    return net.eval(), images[:1200], images[1200:]


def agreement(net, other, images):
    with torch.no_grad():
        return (net(images).argmax(1) == other(images).argmax(1)).double().mean().item()


def test_channels_cut_to_half_without_retraining(trained):
    net, calibration, unseen = trained
    halves = {"features.0": 4, "features.3": 6, "features.7": 8, "classifier.0": 24}
    result = le.prune(net, calibration, widths=halves)
    assert [one.width for one in result.after.layers] == [4, 6, 8, 24]
    assert result.size[1].flops < 0.35 * result.size[0].flops
    cut_by_norm = copy.deepcopy(result.model)  # the same size, without a refit
    slots = dict(cut_by_norm.named_modules())
    kept = torch.arange(1)  # channels of the input
    with torch.no_grad():
        for name, width in [*halves.items(), ("classifier.3", 10)]:
            layer = net.get_submodule(name)
            read = layer.weight.unflatten(1, (-1, 4)) if name == "classifier.0" else layer.weight
            read = read[:, kept].flatten(1, 2) if name == "classifier.0" else read[:, kept]
            kept = layer.weight.flatten(1).norm(dim=1).topk(width).indices.sort().values
            slots[name].weight.copy_(read[kept])
            slots[name].bias.copy_(layer.bias[kept])
            if name.startswith("features"):
                norm = f"features.{int(name.split('.')[1]) + 1}"
                for one in ("weight", "bias", "running_mean", "running_var"):
                    getattr(slots[norm], one).copy_(getattr(net.get_submodule(norm), one)[kept])
    ours, theirs = agreement(net, result.model, unseen), agreement(net, cut_by_norm, unseen)
    assert ours > 0.85
    assert 1 - ours < 0.5 * (1 - theirs)


def test_convolutions_are_corrected_towards_the_original(trained):
    """The next layers put out more nearly what they did than by the refit over channels alone."""
    net, calibration, unseen = trained
    result = le.prune(net, calibration, widths={"features.0": 3, "features.3": 5, "features.7": 6}, match=False)
    (step,) = [one for one in result.plan if one.kind == "reconstruction"]
    assert {"features.3", "features.7", "classifier.0"} <= set(step.layers)
    assert le.Plan.from_dict(result.plan.to_dict()) == result.plan
    refitted = copy.deepcopy(net)
    le.apply(refitted, le.Plan(tuple(one for one in result.plan if one.kind == "neurons")))
    with torch.no_grad():
        wanted = net(unseen)
        ours, without = ((one(unseen) - wanted).norm() for one in (result.model, refitted))
    assert ours < 0.9 * without


def test_default_criteria_keep_the_function_of_unseen_images(trained):
    net, calibration, unseen = trained
    wide = copy.deepcopy(net)  # every channel of the first convolution twice
    for name in ("features.0", "features.1"):
        for one in (*wide.get_submodule(name).parameters(), *wide.get_submodule(name).buffers()):
            if one.dim():
                one.data = torch.cat([one.data, one.data])
    wide.features[3].weight.data = torch.cat([0.3 * net.features[3].weight.data, 0.7 * net.features[3].weight.data], 1)
    result = le.prune(wide, calibration)
    assert len(result.model.features[0].weight) <= 8
    assert agreement(net, result.model, unseen) > 0.98
    assert str(result).count("convolution: ") == 1
