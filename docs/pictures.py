"""The pictures of the documentation, from real trainings: `python -m docs.pictures` (about two minutes).

Every function draws one file in docs/pictures. Nothing is drawn that was not computed here.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import lightning_embed as le
from lightning_embed import demo
from lightning_embed.analysis import (
    find_critical_point,
    hessian,
    inertia,
    landscape_diagram,
    landscape_figure,
    spectrum,
)
from lightning_embed.operators import splitting_embedding, widths_of
from lightning_embed.statistics import (
    affine_fit,
    augmented_weights,
    cosine_groups,
    cosine_similarity,
    minimal_pearson_correlation,
    span_order,
)
from lightning_embed.surgery import mlp, theta_of

FOLDER = Path(__file__).parent / "pictures"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # told apart without colours
SEED = 0


def panels(columns: int, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """An empty figure of some panels side by side."""
    figure = Figure(figsize=(4.1 * columns, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False).flat)


def digits_net(
    widths: tuple[int, ...], activation: type[nn.Module], std: float | None, rate: float, epochs: int
) -> nn.Sequential:
    """A network trained on one half of scikit-learn's digits; `std` None leaves torch's own initial weights."""
    torch.manual_seed(SEED)
    layers = [one for i in range(len(widths) - 1) for one in (nn.Linear(widths[i], widths[i + 1]), activation())]
    net = nn.Sequential(*layers[:-1])
    for parameter in net.parameters() if std is not None else ():
        nn.init.normal_(parameter, std=std)
    train_on(net, torch.optim.Adam(net.parameters(), lr=rate), epochs * 15)
    return net


def train_on(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Train for some steps; the loss on all training images after each of the first fifty."""
    images, labels = demo.digits(SEED)[0].tensors
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(steps):
        batch = torch.randint(0, len(images), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
        if step < 50:
            with torch.no_grad():
                losses.append(nn.functional.cross_entropy(net(images), labels).item())
    return losses


def pre_and_post(net: nn.Sequential, layer: int) -> tuple[Tensor, Tensor]:
    """Input and output of the activation behind a Linear of a Sequential, on the training images."""
    with torch.no_grad():
        pre = net[: layer + 1](demo.digits(SEED)[0].tensors[0])
        return pre, net[layer + 1](pre)


# ---- the pictures ----


def overview() -> Figure:
    """The demonstration: MPC, width and test accuracy over the epochs, merges marked."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        summary = demo.run(Path(folder), seed=SEED, quiet=True)
        with (Path(folder) / "metrics.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    figure, (left, middle, right) = panels(3)
    merged = sorted({one["epoch"] for one in summary["merges"] if one["done"]})
    steps_per_epoch = 15

    def series(name: str) -> tuple[list[float], list[float]]:
        found = [(int(row["step"]) / steps_per_epoch, float(row[name])) for row in rows if row.get(name)]
        return [one for one, _ in found], [one for _, one in found]

    layers = sorted(name for name in rows[0] if name.startswith("mpc/"))
    for style, name in zip(LINES, layers, strict=True):
        left.plot(*series(name), linestyle=style, linewidth=1.4, label=name.removeprefix("mpc/"))
    left.axhline(0.99, color="0.4", linewidth=0.8)
    left.annotate("threshold 0.99", (42, 0.992), fontsize=8, color="0.3")
    left.set(ylabel="minimal Pearson correlation", ylim=(0.8, 1.01), title="How linear each layer acts")
    left.legend(title="layer", fontsize=8, loc="lower left")
    middle.plot(*series("width"), color="k", drawstyle="steps-post")
    middle.set(ylabel="neurons in all hidden layers", ylim=(0, None), title="How many neurons are left")
    right.plot(*series("test_accuracy"), color="k", marker=".", label="with merging")
    right.axhline(
        summary["test_accuracy"]["unpruned_run"],
        color="0.4",
        linestyle="--",
        linewidth=1,
        label="the same training without, at its end",
    )
    right.set(ylabel="test accuracy", ylim=(0.8, 1), title="What it costs")
    right.legend(fontsize=8, loc="lower right")
    for axes in (left, middle, right):
        axes.set(xlabel="epoch")
        for number, epoch in enumerate(merged):
            axes.axvline(epoch, color="tab:red", linewidth=1, alpha=0.6, zorder=0)
            if axes is middle:
                axes.annotate("merges" if number == 0 else "", (epoch + 0.7, 30), fontsize=8, color="tab:red")
    return figure


def linearization() -> Figure:
    """Pre against post of the least linear neuron in the most and in the least linear layer, with the affine fit."""
    net = digits_net((64, 128, 128, 128, 128, 128, 10), nn.Tanh, 0.05, 1e-3, 30)
    measured = {at: minimal_pearson_correlation(*pre_and_post(net, at)).item() for at in range(0, 10, 2)}
    figure, axes = panels(3)
    for place, at in enumerate((max(measured, key=measured.get), min(measured, key=measured.get))):
        pre, post = pre_and_post(net, at)
        worst = torch.stack(
            [torch.corrcoef(torch.stack([a, b]))[0, 1].abs() for a, b in zip(pre.T, post.T, strict=True)]
        ).argmin()
        x, y = pre[:, worst], post[:, worst]
        fit = affine_fit(pre, post)
        line = torch.linspace(x.min(), x.max(), 2)
        axes[place].plot(x[::3], y[::3], ".", markersize=3, color="tab:blue", label="samples")
        axes[place].plot(
            line, fit.slope[worst] * line + fit.intercept[worst], "k--", linewidth=1, label=r"$\lambda x + \mu$"
        )
        axes[place].set(xlabel="pre", ylabel="post", title=f"layer {at}: MPC {measured[at]:.3f}")
        axes[place].legend(fontsize=8)
    axes[2].bar([str(at) for at in measured], measured.values(), color="0.6", edgecolor="k")
    axes[2].axhline(0.99, color="k", linewidth=0.8)
    axes[2].set(xlabel="hidden layer", ylabel="MPC", ylim=(0.8, 1.0), title="every layer; threshold 0.99")
    return figure


def condensation() -> Figure:
    """Cosine similarities of a layer ordered by group, before and during training, and what the span criterion sees."""
    figure, axes = panels(3, 3.6)
    nets = {epochs: digits_net((64, 128, 128, 128, 10), nn.Tanh, 0.005, 1e-3, epochs) for epochs in (0, 8)}
    for place, (epochs, net) in enumerate(nets.items()):
        vectors = augmented_weights(net[0].weight, net[0].bias)
        groups = cosine_groups(vectors, 0.9, absolute=True)
        order = [neuron for group in sorted(groups, key=len, reverse=True) for neuron in group]
        image = axes[place].imshow(
            cosine_similarity(vectors)[order][:, order].abs(), cmap="Greys", vmin=0, vmax=1, interpolation="none"
        )
        axes[place].set(xlabel="neurons, ordered by group", title=f"epoch {epochs}: {len(groups)} groups at cosine 0.9")
    figure.colorbar(image, ax=axes[:2], label="|cosine of input weights|", shrink=0.8)
    net = nets[8]
    for style, at in zip(LINES, (0, 2, 4), strict=False):
        span = span_order(pre_and_post(net, at)[1], net[at + 2].weight, 0.0)
        axes[2].semilogy(range(1, 1 + len(span.kept)), span.residual, linestyle=style, label=f"layer {at}")
    axes[2].axhline(0.01, color="k", linewidth=0.8)
    axes[2].set(
        xlabel="neurons kept",
        ylabel="share of the layer's contribution missing",
        ylim=(1e-4, 1.2),
        title="epoch 8, span; threshold 0.01",
    )
    axes[2].legend(fontsize=8)
    return figure


def null_neurons() -> Figure:
    """How much the features of a ReLU network vary that was trained at a high rate."""
    net = digits_net((64, 128, 128, 10), nn.ReLU, None, 0.02, 40)
    figure, axes = panels(2)
    train, test = demo.digits(SEED)
    result = le.prune(net, train.tensors[0], criteria=le.Criteria(None, None, None))
    for place, at in enumerate((0, 2)):
        spread = pre_and_post(net, at)[1].std(0).sort(descending=True).values
        dead = int((spread == 0).sum())
        axes[place].bar(range(len(spread)), spread, width=1.0, color="0.5")
        axes[place].axvspan(len(spread) - dead - 0.5, len(spread) - 0.5, color="tab:red", alpha=0.2)
        axes[place].set(
            xlabel="neurons, ordered",
            ylabel="standard deviation of the feature",
            title=f"layer {at}: {dead} of {len(spread)} are constant",
        )
    old, new = demo.logits(net, test), demo.logits(result.model, test)
    print("null neurons: largest difference of logits on the test images", (new - old).abs().max().item(), result.size)
    return figure


def check() -> Figure:
    """What the change on the deciding half foretells: change and agreement on test images that no merge has seen."""
    from benchmarks.tolerances import CHANGES, classifiers, generous, pruned

    points = [pruned(*one, generous(value), change=value) for one in classifiers(range(3)) for value in CHANGES]
    figure, (left, right) = panels(2)
    decided = [one["change, calibration"] for one in points]
    left.loglog(decided, [one["change, test"] for one in points], "o", color="tab:blue", mfc="none")
    low, high = min(decided) / 1.3, max(decided) * 1.3
    left.plot([low, high], [low, high], color="0.5", linewidth=0.8, label="equal")
    left.set(xlabel="change on the deciding half", ylabel="change on test images", title="The check foretells")
    left.legend(fontsize=8)
    right.semilogx(decided, [one["agreement"] for one in points], "o", color="tab:blue", mfc="none")
    right.axvline(0.05, color="k", linewidth=0.8)
    right.annotate("default", (0.052, right.get_ylim()[0] + 0.002), fontsize=8)
    right.set(
        xlabel="change on the deciding half", ylabel="agreement on test images", title="What a change means for classes"
    )
    return figure


def optimizer_state() -> Figure:
    """The first steps after a merge at two rates, the optimizer's state carried over or anew."""
    figure, axes = panels(2)
    for place, rate in enumerate((1e-3, 3e-3)):
        net = digits_net((64, 128, 128, 128, 10), nn.Tanh, 0.05, rate, 10)
        adam = torch.optim.Adam(net.parameters(), lr=rate)
        train_on(net, adam, 150)
        plan = le.prune(net, demo.digits(SEED)[0].tensors[0]).plan
        for style, name in zip(LINES, ("not merged", "merged, state carried over", "merged, a new Adam"), strict=False):
            one, state = copy.deepcopy((net, adam))
            if name != "not merged":
                le.apply(one, plan, optimizers=state)
            if name == "merged, a new Adam":
                state = torch.optim.Adam(one.parameters(), lr=rate)
            axes[place].plot(range(1, 51), train_on(one, state, 50), linestyle=style, label=name)
        axes[place].set(xlabel="step after the merge", ylabel="training loss", title=f"rate {rate:g}", ylim=(0, None))
        axes[place].legend(fontsize=8)
    return figure


def embeddings() -> Figure:
    """One function at three sizes, and the Hessian's eigenvalues of a critical point that is split twice."""
    x, y = curve()
    point = critical_point()
    theta = theta_of(point)
    figure, (left, right) = panels(2)
    wide = le.widen(point, {"0": 16}, x)
    deep = le.deepen(point, x, after="0", radius=0.002)
    left.plot(x, y, ".", color="0.6", label="data")
    left.plot(x, point(x).detach(), color="k", label="width 2")
    left.plot(x, wide(x).detach(), "--", color="tab:orange", label="widened to 16")
    left.plot(x, deep(x).detach(), ":", color="tab:blue", linewidth=2.5, label="deepened by a layer")
    left.set(xlabel="x", ylabel="output", title="the same function")
    left.legend(fontsize=8)
    for style, marker, width in zip(LINES, "os^", (2, 3, 4), strict=False):
        values = spectrum(hessian(mlp(theta, nn.Tanh()), nn.MSELoss(), (x, y)).matrix)
        counts = inertia(values)
        label = f"width {width}: {counts.positive} positive, {counts.zero} zero, {counts.negative} negative"
        right.semilogy(
            range(1, 1 + len(values)),
            values.abs().sort().values.clamp(min=1e-20),
            linestyle=style,
            marker=marker,
            markersize=4,
            label=label,
        )
        theta = splitting_embedding(widths_of(theta), 1, 0, 0.3)(theta)
    right.set(xlabel="eigenvalue, ordered", ylabel="|eigenvalue| of the Hessian", title="a critical point, split twice")
    right.legend(fontsize=7, loc="lower right")
    return figure


def curve() -> tuple[Tensor, Tensor]:
    """50 points of three steps."""
    x = torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None]
    return x, torch.tanh(4 * (x + 1)) + 0.9 * torch.tanh(4 * (x - 0.5)) - 0.3 * torch.tanh(4 * (x - 1.5))


def critical_point() -> nn.Sequential:
    """A critical point of a tanh network with two hidden neurons."""
    torch.manual_seed(SEED)
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    point = find_critical_point(net, nn.MSELoss(), curve(), steps=4000, rate=0.2)
    assert isinstance(point.model, nn.Sequential)
    return point.model


def landscape() -> Figure:
    """Critical points of small networks, embedded in width 3."""
    return landscape_figure(landscape_diagram(curve(), width=3, trials=6, steps=3000, rate=0.2))


PICTURES: dict[str, Callable[[], Figure]] = {
    "overview": overview,
    "linearization": linearization,
    "condensation": condensation,
    "null-neurons": null_neurons,
    "check": check,
    "optimizer-state": optimizer_state,
    "embeddings": embeddings,
    "landscape": landscape,
}


def main() -> None:
    """Draw all pictures, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which, of {', '.join(PICTURES)}; all by default")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning's use of torch
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    # the same data give the same file
    mpl.rcParams |= {
        "svg.hashsalt": "lightning-embed",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "axes.titlesize": 10,
        "savefig.facecolor": "white",
    }
    FOLDER.mkdir(exist_ok=True)
    for name in options.names or PICTURES:
        PICTURES[name]().savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
        print(f"{name}.svg")


if __name__ == "__main__":
    main()
