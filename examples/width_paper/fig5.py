"""Fig. 5 of the width paper: a wide ReLU network near a critical point is cut to its groups of neurons.

    python examples/width_paper/fig5.py [--data DIR]

The paper trains for 100 000 steps; the step that it cuts at comes early, and ours stops behind it, so that --full
changes nothing but the retraining of the reduced network, 2000 steps for 200.

(a) The loss of a width-400 network from small weights, and the number of groups of its neurons: those of one direction,
up to a cosine of 0.9. (b) The cosines at the chosen step. (c) The loss of the network of one neuron a group, by the
paper's output weights, trained on. (d) How often which predictions of the two networks meet on the test images.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from experiment import Classes, Options, gaussian, images, run, train
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_embed.operators import features, group_mix, merge_neurons
from lightning_embed.statistics import amplitudes, augmented_weights, cosine_groups, cosine_similarity, refit
from lightning_embed.surgery import mlp, theta_of

WIDTH, RATE, IMAGES = 400, 3e-5, 1000
PAPERS_GROUPS = 58
SIMILAR = 0.9  # the least cosine within a group
LOW = 0.1  # of the largest amplitude: neurons below are neglected


def compute(options: Options) -> dict[str, Any]:
    data = images(options, IMAGES)
    targets = nn.functional.one_hot(data.labels, 10).float()
    net = gaussian((data.inputs.shape[1], WIDTH, 10), nn.ReLU(), WIDTH**-3, options.seed).float()
    steps = 450 if data.name == "MNIST" else 1500
    history: dict[str, list[float]] = {"step": [], "loss": [], "groups": []}
    chosen, place = net, 0

    def watch(step: int, loss: float) -> None:
        nonlocal chosen, place
        if step % (steps // 50) == 0:
            count = len(groups_of(net))
            for key, value in zip(history, (step, loss, count), strict=True):
                history[key].append(value)
            if count <= PAPERS_GROUPS:
                chosen, place = copy.deepcopy(net), len(history["step"]) - 1

    train(net, (data.inputs, targets), torch.optim.Adam(net.parameters(), lr=RATE), steps, watch)
    groups = groups_of(chosen)
    by_paper, by_refit = reduced(chosen, groups, data.inputs, options.seed)
    retrained, losses = copy.deepcopy(by_paper), []
    optimizer = torch.optim.Adam(retrained.parameters(), lr=RATE / 10)
    more = 2000 if options.full else 200
    train(retrained, (data.inputs, targets), optimizer, more, lambda _, loss: losses.append(loss))
    old = predictions(chosen, data)
    pairs = torch.zeros(10, 10).index_put((old, predictions(retrained, data)), torch.ones(len(old)), accumulate=True)
    order = [neuron for group in sorted(groups, key=len, reverse=True) for neuron in group]
    w_in, b_in = theta_of(chosen)[0]
    return {
        "data": data.name,
        "found": {
            "step": history["step"][place],
            "neurons of low amplitude": WIDTH - len(order),
            "groups": len(groups),
            "test accuracy of the wide network": share(old, data.test_labels),
            "agreement, the paper's output weights": share(old, predictions(by_paper, data)),
            "agreement, trained on": share(old, predictions(retrained, data)),
            "agreement, output weights refitted, not trained on": share(old, predictions(by_refit, data)),
        },
        "history": history,
        "chosen": place,
        "similarity": cosine_similarity(augmented_weights(w_in, b_in)[order]).mul(100).round().int(),
        "losses_of_reduced": losses,
        "pairs": pairs.int(),
    }


def groups_of(net: nn.Sequential) -> list[list[int]]:
    """The groups of neurons of similar direction, without those of low amplitude."""
    (w_in, b_in), (w_out, _) = theta_of(net)
    vectors = augmented_weights(w_in, b_in)
    size = amplitudes(vectors, w_out)
    high = (size >= LOW * size.max()).nonzero().flatten()
    return [high[group].tolist() for group in cosine_groups(vectors[high], SIMILAR)]


def reduced(
    net: nn.Sequential, groups: list[list[int]], inputs: Tensor, seed: int
) -> tuple[nn.Sequential, nn.Sequential]:
    """One random neuron a group: with Σ a_k ‖w_k‖ / ‖w_j‖ as its output weight, and with all of them refitted."""
    generator = torch.Generator().manual_seed(seed)
    (w_in, b_in), (w_out, b_out) = theta_of(net)
    norms = augmented_weights(w_in, b_in).norm(dim=1).double()
    ratio = torch.ones_like(norms)
    shuffled = [[group[place] for place in torch.randperm(len(group), generator=generator)] for group in groups]
    for group in shuffled:
        ratio[group] = norms[group] / norms[group[0]]
    everyone, by_group = group_mix(shuffled, WIDTH, ratio)
    kept = sorted(group[0] for group in shuffled)
    by_group = by_group[:, [everyone.index(neuron) for neuron in kept]]  # without the neurons of low amplitude
    fitted = refit(features(theta_of(net), inputs, torch.relu)[1], kept)
    merged = [
        merge_neurons(w_in, b_in, w_out, b_out, kept, mix, shift)
        for mix, shift in ((by_group, torch.zeros(WIDTH)), fitted)
    ]
    by_paper, by_refit = (mlp(((one[0], one[1]), (one[2], one[3])), nn.ReLU()) for one in merged)
    return by_paper, by_refit


def predictions(net: nn.Module, data: Classes) -> Tensor:
    with torch.no_grad():
        return net(data.test_inputs).argmax(1)


def share(one: Tensor, other: Tensor) -> float:
    return (one == other).double().mean().item()


def draw(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(10, 8), layout="constrained")
    found, history = results["found"], results["history"]
    figure.suptitle(f"{results['data']}: {WIDTH} neurons cut to {found['groups']} groups", fontsize=11)
    (loss, cosines), (after, pairs) = figure.subplots(2, 2)
    level = history["loss"][results["chosen"]]
    loss.plot(history["step"], history["loss"], color="black", label="loss")
    loss.plot(found["step"], level, "o", color="tab:blue", markersize=8, label=f"chosen step {found['step']}")
    loss.set(xlabel="training step", ylabel="loss (mean squared error)", title="(a) wide network")
    count = loss.twinx()
    count.plot(history["step"], history["groups"], "--", color="tab:red", label="groups")
    count.axhline(PAPERS_GROUPS, color="tab:red", linestyle=":", linewidth=0.8)
    count.set_ylabel("groups of neurons (dotted: the paper's 58)")
    loss.legend(handles=[*loss.lines, count.lines[0]], fontsize=8)
    shown = cosines.imshow([[value / 100 for value in row] for row in results["similarity"]], cmap="gray_r", vmin=0)
    figure.colorbar(shown, ax=cosines, label="cosine of the input weights")
    cosines.set(xlabel="neuron, group by group", ylabel="neuron, group by group", title="(b) similarity")
    after.plot(results["losses_of_reduced"], color="black")
    after.axhline(level, color="tab:blue", linestyle="--", label="loss of the wide network")
    after.set(xlabel="training step", ylabel="loss (mean squared error)", title="(c) reduced network, trained on")
    after.legend(fontsize=8)
    shown = pairs.imshow(results["pairs"], cmap="gray_r")
    figure.colorbar(shown, ax=pairs, label="test images")
    agreement = found["agreement, trained on"]
    pairs.set(xlabel="prediction of the reduced network", ylabel="prediction of the wide network")
    pairs.set(title=f"(d) agreement {agreement:.1%}", xticks=range(10), yticks=range(10))
    return figure


if __name__ == "__main__":
    run("fig5", __doc__, compute, draw, of_images=True)
