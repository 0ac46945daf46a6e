"""Figures show what the history holds, mark what they should, and can be read in grey."""

import sys
from itertools import combinations

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from matplotlib.colors import to_rgb

import lightning_embed as le
from lightning_embed.reporting import Curve, figures, read_history
from lightning_embed.reporting.history import Agreement, History
from tests.reporting.histories import fitted
from tests.reporting.test_curves import stairs


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fitted(folder, CSVLogger(folder, "", ""))
    return read_history(folder)


def test_every_figure_is_there_with_titles_and_units_and_pyplot_keeps_none(history):
    import matplotlib.pyplot as plt

    drawn = figures(history)
    assert set(drawn) == {"mpc", "widths", "training", "similarity", "agreement"}
    for name, figure in drawn.items():
        figure.canvas.draw()
        axes = figure.axes[0]
        assert axes.get_title() or name == "similarity", name
        if name in {"mpc", "widths", "training"}:
            assert figure.axes[-1].get_xlabel() == "step"
            assert all(one.get_ylabel() for one in figure.axes)
    assert plt.get_fignums() == []


def lines(axes):
    return {one.get_label(): one for one in axes.lines if not one.get_label().startswith("_")}


def test_curves_are_those_of_the_history_with_threshold_and_merges(history):
    axes = figures(history)["mpc"].axes[0]
    for layer, line in lines(axes).items():
        assert list(line.get_xdata()) == list(history.curves[f"mpc/{layer}"].steps)
        assert list(line.get_ydata()) == list(history.curves[f"mpc/{layer}"].values)
    levels = [one.get_ydata() for one in axes.lines if len(set(np.asarray(one.get_ydata()))) == 1]
    assert any(set(level) == {0.9999} for level in levels)
    assert "threshold 0.9999" in axes.texts[0].get_text()
    triangles = [one.get_xdata()[0] for one in axes.lines if one.get_marker() == "v" and len(one.get_xdata()) == 1]
    assert triangles == history.merge_steps
    widths = lines(figures(history)["widths"].axes[0])
    assert list(widths["neurons"].get_ydata()) == [20, 20, 6, 6, 6, 6]
    assert widths["kept by cosine"].get_ydata()[0] == 14


def test_lines_differ_by_more_than_colour():
    curves = {f"mpc/layer{number}": Curve.of(range(30), [0.9] * 30) for number in range(8)}
    drawn = lines(figures(History(curves=curves))["mpc"].axes[0]).values()
    assert len(drawn) == 8
    for one, other in combinations(drawn, 2):
        assert (one.get_linestyle(), one.get_marker()) != (other.get_linestyle(), other.get_marker())
    greys = [np.dot(to_rgb(one.get_color()), (0.3, 0.59, 0.11)) for one in drawn]
    assert greys == sorted(greys)


def test_plateaus_are_shaded_where_they_are():
    loss = stairs([3.0, 2.0, 1.0], 400, 200)
    figure = figures(History(curves={"loss": loss, "grad_norm/l1": loss}))["training"]
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert len(axes.patches) == 3
    begin = figure.axes[0].patches[1].get_x()
    assert abs(begin - 600) < 60


def test_the_similarity_is_ordered_by_group_before_and_after(history):
    before, after = (axes for axes in figures(history)["similarity"].axes if axes.images and axes.get_title())
    shown = before.images[0].get_array()
    assert shown.shape == (12, 12)
    assert all(shown[k, k + 1] == 1.0 for k in range(0, 12, 2))  # every neuron stands there twice
    assert after.images[0].get_array().shape == (6, 6)
    assert before.get_xlabel() == "6 groups among 12 shown"


def test_the_agreement_is_in_shares_of_the_row():
    figure = figures(History(agreements=(Agreement(5, 1, ((3, 1), (0, 0))),)))["agreement"]
    assert figure.axes[0].images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert "75.00 % of 4" in figure.axes[0].get_title()


def test_nothing_is_drawn_of_nothing():
    assert figures(History()) == {}


def test_many_layers_have_no_endless_legend():
    curves = {f"mpc/{number}": Curve.of([0, 1], [0.9, 0.8]) for number in range(50)}
    assert set(lines(figures(History(curves=curves))["mpc"].axes[0])) == {"first: 0", "last: 49"}


def test_missing_matplotlib_is_named_with_the_remedy(monkeypatch, history):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"lightning-embed\[figures\]"):
        figures(history)


def test_a_result_can_be_drawn_too():
    import torch

    from lightning_embed.reporting.history import history_of

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Hardtanh(-9, 9), torch.nn.Linear(6, 2))
    result = le.prune(model, torch.randn(200, 3))
    assert "agreement" in figures(history_of(result))
