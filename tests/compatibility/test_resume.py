"""Resumed = uninterrupted: parameters, optimizer state, schedules and logged metrics, to the last bit."""

import itertools
import signal
import subprocess
import sys

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.compatibility.killed import saving
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


def same(whole, resumed, step):
    (run, model, lines), (other, second, more) = whole, resumed
    assert outcome(run, model) == outcome(other, second)
    first = more[0][0]
    assert first <= step
    expected = lines[next(at for at, line in enumerate(lines) if line == more[0]) :]
    assert expected == more


@pytest.mark.parametrize(("optimizer", "schedule", "accumulation"), CELLS)
@pytest.mark.cell("Resume", "{optimizer}, schedule {schedule}, accumulation {accumulation}")
def test_resumed_is_uninterrupted(tmp_path, optimizer, schedule, accumulation):
    cell = (optimizer, schedule, accumulation)
    control, interrupted = (fit(tmp_path / name, cell, (), epochs=e) for name, e in (("control", 6), ("cut", 4)))
    del interrupted
    same(control, fit(tmp_path / "again", cell, (), ckpt=tmp_path / "cut/3.ckpt", seed=1), STEPS)

    whole = fit(tmp_path / "whole", cell, ours())
    assert {epoch for _, _, epoch in merges(whole[0])} == {2, 4}  # before and after the interruption
    if optimizer != "lbfgs":  # whose large steps leave other layers linear too
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


@pytest.mark.parametrize("at", [13, *(pytest.param(one, marks=pytest.mark.slow) for one in (21, 37))])
@pytest.mark.cell("Resume", "killed (SIGKILL) in mid-epoch, at step {at}, saved every 5 steps")
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, at):
    for mode in ("control", "ours"):
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.compatibility.killed",
            str(tmp_path / mode),
            str(at),
            mode,
        ]
        assert subprocess.run(command, capture_output=True, timeout=100, check=False).returncode == -signal.SIGKILL
        last = max((tmp_path / mode).glob("*.ckpt"), key=lambda path: int(path.stem))
        assert int(last.stem) % len(Batches())  # in mid-epoch
        (run, model, lines), (resumed, other, more) = (
            saving(tmp_path / name, mode, ckpt, seed) for name, ckpt, seed in (("whole", None, 0), ("resumed", last, 1))
        )
        assert outcome(run, model) == outcome(resumed, other)
        # Lightning does not keep an epoch's running averages in a checkpoint
        steps, again = ([line for line in some if "loss_epoch" not in line[1]] for some in (lines, more))
        assert again == steps[-len(again) :]
        if mode == "ours":
            assert merges(run) == merges(resumed) != []


@pytest.mark.cell("Resume", "calibration data past checkpoint_mib: merging waits for new ones")
def test_without_room_for_the_calibration_data_a_resumed_run_merges_later(tmp_path, caplog):
    cell = ("adam", "none", 1)
    fit(tmp_path / "cut", cell, ours(checkpoint_mib=1e-4))
    assert "records anew before it merges" in caplog.text
    run, _, _ = fit(tmp_path / "on", cell, ours(checkpoint_mib=1e-4), ckpt=tmp_path / "cut/1.ckpt")
    assert [epoch for _, _, epoch in merges(run)] == [3, 3, 4]
