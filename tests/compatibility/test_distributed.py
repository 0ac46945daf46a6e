"""Two real processes: the same merges, the same parameters and optimizer state, to the last bit; or none goes on."""

import json
import socket
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from tests.compatibility.ranks import ByRank, Half
from tests.compatibility.training import Net, merges, ours, trainer

COMMAND = [sys.executable, "-W", "ignore", "-m", "tests.compatibility.ranks"]
MERGED = [("net.2", "linearization", 2), ("net.0", "condensation", 2), ("net.0", "condensation", 4)]


def launch(folder, timeout=150, command=COMMAND, **options):
    folder.mkdir(exist_ok=True)
    arguments = [*command, str(folder), json.dumps(options)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, check=False)


def both(folder, **options):
    done = launch(folder, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def alike(ranks):
    first, second = ranks
    assert first["outcome"] == second["outcome"]
    assert first["records"] == second["records"]
    return first["merges"]


@pytest.mark.parametrize(
    ("case", "options"),
    [
        pytest.param("plain", {}, marks=pytest.mark.slow),
        pytest.param("accumulation", {"accumulate": 2}, marks=pytest.mark.slow),
        (
            "find_unused_parameters, accumulation",
            {"model": "Unused", "ddp": {"find_unused_parameters": True}, "accumulate": 2},
        ),
        pytest.param("EMAWeightAveraging", {"average": True}, marks=pytest.mark.slow),
        pytest.param("saved every 5 steps", {"every_n_train_steps": 5}, marks=pytest.mark.slow),
        pytest.param("static graph", {"ddp": {"static_graph": True}}, marks=pytest.mark.slow),
        pytest.param("gradients as bucket views", {"ddp": {"gradient_as_bucket_view": True}}, marks=pytest.mark.slow),
        pytest.param("manual optimization", {"model": "Manual"}, marks=pytest.mark.slow),
        pytest.param(
            "manual optimization, static graph",
            {"model": "Manual", "ddp": {"static_graph": True}},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
@pytest.mark.cell("DDP (two processes, gloo)", "ddp, {case}")
def test_ranks_merge_alike(tmp_path, case, options):
    assert alike(both(tmp_path / "run", **options)) == MERGED


@pytest.mark.slow
@pytest.mark.cell("DDP (two processes, gloo)", "ddp, LBFGS (its state holds each rank's own loss, in torch itself)")
def test_lbfgs(tmp_path):
    first, second = both(tmp_path / "run", optimizer="lbfgs")
    assert first["outcome"]["parameters"] == second["outcome"]["parameters"]
    assert first["records"] == second["records"]
    assert [epoch for _, _, epoch in first["merges"]] == [2, 4]


@pytest.mark.slow
@pytest.mark.cell("DDP (two processes, gloo)", "DDP asked for, one process")
def test_one_process_under_ddp(tmp_path):
    done = launch(tmp_path / "run", devices=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.load(tmp_path / "run/0.pt", weights_only=False)["merges"] == MERGED


@pytest.mark.slow
def test_an_event_that_merges_nothing_changes_nothing_on_any_rank(tmp_path):
    options = {"optimizer": "lbfgs", "pruner": {"tolerance": 0.0, "criteria": 0.0}, "epochs": 4}
    first, second = both(tmp_path / "run", **options)
    assert first["outcome"]["parameters"] == second["outcome"]["parameters"]
    assert first["merges"] == second["merges"] == []


@pytest.mark.cell("DDP (two processes, gloo)", "a layer that is linear on one rank's data alone is kept")
def test_the_data_of_all_ranks_count(tmp_path):
    alone, run = Half(), trainer(tmp_path, ours(), max_epochs=3)
    run.fit(alone, DataLoader(ByRank(), batch_size=16))
    assert ("gate.0", "linearization", 2) in merges(run)
    ranks = both(tmp_path / "run", model="Half", epochs=3)
    assert "gate.0" not in {layer for layer, _, _ in alike(ranks)}
    assert "gate.0.weight" in ranks[0]["parameters"]


@pytest.mark.slow
@pytest.mark.cell("DDP (two processes, gloo)", "ddp_spawn, model attached before fit")
def test_spawned_processes_hand_the_merged_weights_back(tmp_path):
    done = launch(tmp_path / "run", start="spawn", attach=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / "run" / f"{name}.pt", weights_only=False) for name in ("main",)]
    assert ranks[0]["parameters"]["net.0.weight"].shape == (3, 4)
    assert ranks[0]["history"]


@pytest.mark.slow
@pytest.mark.cell("DDP (two processes, gloo)", "ddp_spawn, model not attached: refused, with the remedy")
def test_spawned_processes_need_an_attached_model(tmp_path):
    done = launch(tmp_path / "run", start="spawn")
    assert done.returncode != 0
    assert "Call lightning_embed.attach(model) before trainer.fit(model)" in done.stderr


@pytest.mark.slow
@pytest.mark.cell("DDP (two processes, gloo)", "resumed with DDP = uninterrupted, and with another seed of weights")
def test_resumed_is_uninterrupted(tmp_path):
    whole = both(tmp_path / "whole")
    resumed = both(tmp_path / "resumed", ckpt=str(tmp_path / "whole/3.ckpt"))
    assert alike(resumed) == MERGED
    assert resumed[0]["outcome"] == whole[0]["outcome"]


@pytest.mark.cell("DDP (two processes, gloo)", "a checkpoint of DDP resumed in one process, and the reverse")
def test_resumed_with_another_number_of_processes(tmp_path):
    both(tmp_path / "two", epochs=3)
    model, run = Net(seed=5), trainer(tmp_path, ours(), max_epochs=3)
    run.fit(model, DataLoader(ByRank(), batch_size=16), ckpt_path=tmp_path / "two/1.ckpt")
    assert merges(run) == MERGED[:2]
    run.save_checkpoint(tmp_path / "one.ckpt")
    assert alike(both(tmp_path / "back", ckpt=str(tmp_path / "one.ckpt"))) == MERGED


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("how", ["raises", pytest.param("dies", marks=pytest.mark.slow)])
@pytest.mark.cell("DDP (two processes, gloo)", "rank {rank} {how} in the middle of a merge: the run fails, none hangs")
def test_a_rank_that_fails_stops_all(tmp_path, rank, how):
    done = launch(tmp_path / "run", fail=[rank, how])
    assert done.returncode != 0
    assert not list((tmp_path / "run").glob("*.pt"))
    assert not (tmp_path / "run" / "2.ckpt").exists()
    if how == "raises":
        assert f"process {rank}: RuntimeError: as planned" in done.stderr


@pytest.mark.slow
@pytest.mark.cell("DDP (two processes, gloo)", "two nodes on one machine, torchrun --nnodes 2")
def test_two_nodes(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    options = json.dumps({"devices": 1, "nodes": 2})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}"),
                *("--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"),
                *("-m", "tests.compatibility.ranks", str(folder), options),
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in (0, 1)
    ]
    for node in nodes:
        _, said = node.communicate(timeout=150)
        assert node.returncode == 0, said[-3000:]
    assert alike([torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]) == MERGED


def sharded(folder, what):
    folder.mkdir()
    command = [sys.executable, "-m", "tests.compatibility.sharded", str(folder), what]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)


@pytest.mark.slow
@pytest.mark.cell("Sharded parameters (two processes, gloo)", "ModelParallelStrategy with FSDP2: the monitor works")
def test_layers_whose_weights_are_spread_are_measured(tmp_path):
    found = []
    for what in ("with", "without"):
        done = sharded(tmp_path / what, what)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append([json.loads((tmp_path / what / f"{rank}.json").read_text()) for rank in (0, 1)])
    (first, second), plain = found
    ours = ("mpc/net.0", "mpc/net.2", "grad_norm/net.4", "grad_norm/l1", "depth")
    assert [first["metrics"][name] for name in ours] == [second["metrics"][name] for name in ours]
    assert first["metrics"]["depth"] == 2
    assert first["metrics"]["mpc/net.2"] == pytest.approx(1.0)  # a layer that acts linearly
    assert 0 < first["metrics"]["mpc/net.0"] < 1
    assert first["weights"] == second["weights"] == plain[0]["weights"]


@pytest.mark.slow
@pytest.mark.cell("Sharded parameters (two processes, gloo)", "ModelParallelStrategy: merging is refused at setup")
def test_weights_that_are_spread_are_not_merged(tmp_path):
    done = sharded(tmp_path / "run", "pruner")
    assert done.returncode != 0
    assert "cannot merge parameters that ModelParallelStrategy shards" in done.stderr
