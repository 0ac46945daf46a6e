"""Real architectures: what may merge in each, what half widths leave, and that nothing but copies was cut."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

import lightning_embed as le
from benchmarks.architectures import page
from benchmarks.architectures.__main__ import FIGURES
from lightning_embed.graph import Graph, observe
from lightning_embed.tape import record
from tests.architectures import ARCHITECTURES
from tests.architectures.architecture import Architecture
from tests.architectures.planting import halves, plant_copies, sites

OBSERVING = 15.0  # CPU seconds at most
FEW = 512  # calibration samples


@pytest.fixture(params=ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def kind(request) -> Architecture:
    if not request.param.available:
        pytest.skip(f"{request.param.title} needs the package {request.param.package} (extra: architectures)")
    return request.param


def graph_of(kind: Architecture, net: nn.Module) -> Graph:
    return observe(net, record(net, kind.batches(64, like=net), call=lambda batch: kind.run(net, batch)))


@pytest.mark.architectures
def test_half_of_the_units_suffice_where_the_others_are_copies(kind):
    net = kind.build().double()
    start = time.process_time()
    graph = graph_of(kind, net)
    assert time.process_time() - start < OBSERVING
    if not sites(graph):
        pytest.skip("nothing may merge")
    plant_copies(net, graph)
    kind.settle(net)
    was = copy.deepcopy(net.state_dict())
    batches = kind.batches(FEW, like=net, seed=3)
    result = le.prune(
        net,
        batches,
        widths=halves(graph),
        call=lambda batch: kind.run(net, batch),
        output=kind.output,
        match=False,
    )
    assert all(torch.equal(was[name], one) for name, one in net.state_dict().items())
    unseen = kind.batches(FEW, like=net, seed=4)
    assert change(kind, net, result.model, batches) <= 1e-6
    assert change(kind, net, result.model, unseen) <= 1e-2  # neurons that were constant before may move here
    widths = {layer.name: layer.width for layer in sites(graph_of(kind, result.model))}
    assert len(widths) == len(sites(graph))
    assert all(widths[name] <= wanted for name, wanted in halves(graph).items() if name in widths)
    assert untrained(kind, result.model, unseen[0]) == untrained(kind, net, unseen[0])
    assert_reloads(kind, result.model, unseen)


def change(kind: Architecture, net: nn.Module, other: nn.Module, batches) -> float:
    """‖f′ − f‖ / ‖f − mean f‖."""
    was, now = (kind.outcome(model, batches) for model in (net, other))
    return ((now - was).norm() / (was - was.mean(0)).norm()).item()


def untrained(kind: Architecture, net: nn.Module, batch) -> list[str]:
    """The parameters that get no gradient of the outputs."""
    made = kind.output(kind.run(net.train(), batch))
    sum(one.square().sum() for one in (made if isinstance(made, tuple) else (made,))).backward()
    names = [name for name, one in net.named_parameters() if one.grad is None]
    net.eval().zero_grad()
    return names


def assert_reloads(kind: Architecture, net: nn.Module, batches) -> None:
    """A model of the original size takes the merged state dict."""
    fresh = kind.build(seed=5).double()
    le.attach(fresh)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(kind.outcome(fresh, batches), kind.outcome(net, batches))


def test_the_page_is_that_of_the_figures():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.read(FIGURES))


def test_every_row_of_the_figures_is_an_architecture():
    rows = list(page.read(FIGURES))
    assert rows
    assert rows == [title for title in ARCHITECTURES if title in rows]
