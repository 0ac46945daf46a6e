"""Resumed = uninterrupted: parameters, optimizer state, schedules and logged metrics, to the last bit."""

import itertools
import signal
import subprocess
import sys

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.compatibility.training import Batches, Lines, Net, merges, ours, outcome, trainer

CORE = [
    ("sgd", "onecycle", 1),
    ("sgd", "none", 2),
    ("adam", "warmup", 2),
    ("adam", "none", 1),
    ("adamw", "cosine", 1),
    ("adamw", "onecycle", 2),
    ("lbfgs", "none", 1),
]
ALL = list(itertools.product(("sgd", "adam", "adamw", "lbfgs"), ("none", "onecycle", "warmup", "cosine"), (1, 2)))
CELLS = [pytest.param(*one, marks=() if one in CORE else pytest.mark.slow, id="-".join(map(str, one))) for one in ALL]
STEPS = 6 * len(Batches())


def fit(folder, cell, callbacks, *, epochs=6, ckpt=None, seed=0):
    optimizer, schedule, accumulation = cell
    model = Net(optimizer, schedule, STEPS // accumulation, seed)
    logger = Lines()
    saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, auto_insert_metric_name=False)
    run = trainer(
        folder,
        [*callbacks, saver],
        max_epochs=epochs,
        logger=logger,
        accumulate_grad_batches=accumulation,
        enable_checkpointing=True,
    )
    run.fit(model, Batches(), ckpt_path=ckpt)
    return run, model, logger.lines


def after(lines, step):
    """What was logged from a step on; the epochs are cut where the resumed run begins."""
    return [line for line in lines if line[0] >= step]


def same(whole, resumed, step):
    (run, model, lines), (other, second, more) = whole, resumed
    assert outcome(run, model) == outcome(other, second)
    first = more[0][0]
    assert first <= step
    expected = lines[next(at for at, line in enumerate(lines) if line == more[0]) :]
    assert expected == more


@pytest.mark.parametrize("optimizer,schedule,accumulation", CELLS)
@pytest.mark.cell("Resume", "{optimizer}, schedule {schedule}, accumulation {accumulation}")
def test_resumed_is_uninterrupted(tmp_path, optimizer, schedule, accumulation):
    cell = (optimizer, schedule, accumulation)
    control, interrupted = (fit(tmp_path / name, cell, (), epochs=e) for name, e in (("control", 6), ("cut", 4)))
    del interrupted
    same(control, fit(tmp_path / "again", cell, (), ckpt=tmp_path / "cut/3.ckpt", seed=1), STEPS)

    whole = fit(tmp_path / "whole", cell, ours())
    assert merges(whole[0]) == [
        ("net.2", "linearization", 2),
        ("net.0", "condensation", 2),
        ("net.0", "condensation", 4),
    ]
    once = fit(tmp_path / "once", cell, ours(), ckpt=tmp_path / "whole/3.ckpt", seed=1)
    same(whole, once, STEPS)
    fit(tmp_path / "twice", cell, ours(), epochs=4, ckpt=tmp_path / "whole/1.ckpt", seed=2)
    twice = fit(tmp_path / "thrice", cell, ours(), ckpt=tmp_path / "twice/3.ckpt", seed=3)
    same(whole, twice, STEPS)
    assert merges(once[0]) == merges(twice[0]) == merges(whole[0])


def killed(folder, at, mode):
    """A training in a process of its own that saves every 5 steps and is killed in the middle of an epoch."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.compatibility.killed", str(folder), str(at), mode]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("at", [13, pytest.param(21, marks=pytest.mark.slow), 37])
@pytest.mark.cell("Resume", "killed (SIGKILL) in mid-epoch, at step {at}")
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, at):
    found = {}
    for mode in ("control", "ours"):
        assert killed(tmp_path / mode / "cut", at, mode).returncode == -signal.SIGKILL
        last = max((tmp_path / mode / "cut").glob("*.ckpt"), key=lambda path: int(path.stem))
        for name, arguments in (("whole", (0, mode)), ("resumed", (0, f"{mode}:{last}"))):
            done = killed(tmp_path / mode / name, *arguments)
            assert done.returncode == 0, done.stderr
            found[mode, name] = torch.load(tmp_path / mode / name / "outcome.pt", weights_only=False)
    for mode in ("control", "ours"):
        whole, resumed = found[mode, "whole"], found[mode, "resumed"]
        assert whole["outcome"] == resumed["outcome"]
        steps = [line for line in resumed["lines"] if "loss_epoch" not in line[1]]
        assert steps == [line for line in whole["lines"] if "loss_epoch" not in line[1]][-len(steps) :]
    assert found["ours", "whole"]["merges"] == found["ours", "resumed"]["merges"] != []


@pytest.mark.cell("Resume", "calibration data past checkpoint_mib: merging waits for new ones")
def test_without_room_for_the_calibration_data_a_resumed_run_merges_later(tmp_path, caplog):
    cell = ("adam", "none", 1)
    fit(tmp_path / "cut", cell, ours(checkpoint_mib=1e-4), epochs=2)
    assert "records anew before it merges" in caplog.text
    run, _, _ = fit(tmp_path / "on", cell, ours(checkpoint_mib=1e-4), ckpt=tmp_path / "cut/1.ckpt")
    assert [epoch for _, _, epoch in merges(run)] == [3, 3, 4]
