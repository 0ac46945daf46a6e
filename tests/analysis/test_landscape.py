"""A landscape diagram of a small size: every point in it is what it says."""

import json
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_embed.analysis import Landscape, Risk, inertia, landscape_diagram, landscape_figure, spectrum
from lightning_embed.analysis.landscape import LandscapePoint
from lightning_embed.errors import InputError
from lightning_embed.operators import network, widths_of
from lightning_embed.surgery import mlp
from tests.tolerances import tolerance

X = torch.linspace(-2, 2, 20, dtype=torch.float64)[:, None]
DATA = X, torch.sin(2 * X) + X / 2
TINY = {"width": 2, "trials": 6, "steps": 300, "rate": 0.05}


@pytest.fixture(scope="module")
def landscape():
    return landscape_diagram(DATA, **TINY)


def test_every_point_is_critical_where_it_was_found_and_where_it_is_embedded(landscape):
    assert {point.width for point in landscape.points} == {1, 2}
    for point in landscape.points:
        assert widths_of(point.theta) == (1, point.width, 1)
        assert widths_of(point.embedded) == (1, 2, 1)
        for theta in (point.theta, point.embedded):
            risk = Risk(mlp(theta, nn.Tanh()), nn.MSELoss(), DATA)
            assert risk.gradient(risk.point).abs().sum() < 1e-11
            assert risk.value(risk.point).item() == pytest.approx(point.loss)
            assert_close(network(theta, X, torch.tanh), point.outputs, **tolerance(torch.float64, 10.0))
        assert point.inertia == inertia(spectrum(risk.hessian(risk.point)))
        assert point.inertia.zero >= 2 - point.width  # the minimal degree m - m₀ (004, Thm. 2)


def test_the_best_single_neuron_is_a_saddle_point_of_two(landscape):
    best = min((point for point in landscape.points if point.width == 1), key=lambda point: point.loss)
    assert best.inertia.counts == (5, 1, 1)
    assert best.loss > min(point.loss for point in landscape.points)


def test_points_are_distinct_functions_and_every_trial_is_accounted_for(landscape):
    outputs = [point.outputs for point in landscape.points]
    for number, one in enumerate(outputs):
        assert all((one - other).abs().max() > 1e-4 for other in outputs[:number])
    for width, unsettled in enumerate(landscape.unsettled, start=1):
        found = sum(point.found for point in landscape.points if point.width == width)
        assert found + unsettled == 6 if width == 1 else found + unsettled <= 6  # the others are functions of width 1


def test_the_seed_decides():
    tiny = {"width": 1, "trials": 2, "steps": 100, "rate": 0.05}
    first, again, other = (landscape_diagram(DATA, **tiny, seed=seed).to_dict() for seed in (0, 0, 1))
    assert first == again
    assert first["points"] != other["points"]


def test_it_is_plain_data(landscape):
    plain = json.loads(json.dumps(landscape.to_dict()))
    assert plain["width"] == 2
    assert [point["loss"] for point in plain["points"]] == [point.loss for point in landscape.points]
    assert plain["points"][0]["inertia"]["zero"] == landscape.points[0].inertia.zero


def test_the_figure_has_a_dot_a_number_and_a_curve_for_every_point(landscape, tmp_path):
    unclear = LandscapePoint(**{**vars(landscape.points[0]), "inertia": None})
    drawn = Landscape(**{**vars(landscape), "points": (*landscape.points, unclear)})
    figure = landscape_figure(drawn)
    (axes,) = figure.axes
    dots = [line.get_xydata()[0] for line in axes.lines]
    assert sorted(loss for _, loss in dots) == sorted(point.loss for point in drawn.points)
    written = [text.get_text() for text in axes.texts]
    numbers = [text for text in written if "trial" not in text]
    trials = [text for text in written if "trial" in text]
    assert numbers == [*[str(point.inertia.zero) for point in landscape.points], "?"]
    assert trials == [
        f"{point.found} trial{'s' * (point.found != 1)}" if point.found else "known, 0 trials" for point in drawn.points
    ]
    curves = [inset.lines[-1].get_ydata() for inset in axes.child_axes]
    for point, curve in zip(drawn.points, curves, strict=True):
        assert_close(torch.as_tensor(curve), point.outputs[:, 0])
    figure.savefig(tmp_path / "landscape.png")
    assert (tmp_path / "landscape.png").stat().st_size > 1000


def test_points_of_nearly_one_loss_do_not_cover_each_other(landscape):
    point = landscape.points[0]
    figure = landscape_figure(Landscape(**{**vars(landscape), "points": (point, point)}))
    figure.canvas.draw()
    first, second = (inset.get_window_extent() for inset in figure.axes[0].child_axes)
    assert not first.overlaps(second)


def test_what_cannot_be_drawn_or_searched_is_refused(landscape, monkeypatch):
    with pytest.raises(InputError, match="must be positive"):
        landscape_diagram(DATA, width=0)
    with pytest.raises(InputError, match="two matrices"):
        landscape_diagram((X, X[:, 0]))
    two = Landscape(**{**vars(landscape), "inputs": torch.zeros(20, 2)})
    with pytest.raises(InputError, match=r"one input and one output.*to_dict"):
        landscape_figure(two)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"lightning-embed\[figures\]"):
        landscape_figure(landscape)
