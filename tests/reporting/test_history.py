"""A history is only ever appended to, survives a crash, and is read as what really happened."""

import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

import lightning_embed as le
from lightning_embed.callbacks import After, EmbeddingMonitor, EmbeddingPruner
from lightning_embed.reporting.history import NAME, HistoryFile, history_of, read_history, snapshot_entry
from tests.callbacks.runs import Planted, loader, trainer
from tests.reporting.histories import EXACT, fitted, start


def sample(file, step, **values):
    file.add("sample", step=step, epoch=0, values=values)


def test_a_run_is_told_from_beginning_to_end(tmp_path):
    monitor, pruner = EmbeddingMonitor(every_n_steps=2), EmbeddingPruner(**EXACT)
    run = fitted(tmp_path, CSVLogger(tmp_path, "", ""), monitor, pruner)
    found = read_history(tmp_path)
    assert found.title == "Planted"
    assert found.status == "finished"
    assert found.damaged == 0
    assert {"Python", "torch", "lightning"} <= found.environment.keys()
    assert found.threshold("linearization") == 0.9999
    assert found.settings["tolerance"]["change"] == 0.05
    assert [one.to_dict() for one in found.records] == [one.to_dict() for one in pruner.records]
    assert found.merge_steps == [2 * len(loader())]
    steps = list(found.curves["mpc/net.0"].steps)
    assert steps == list(range(0, run.global_step, 2))
    assert max(found.curves["mpc/net.2"].steps) < found.merge_steps[0]  # the layer is gone then
    assert list(found.curves["neurons/net.0"].values) == [12, 12, 6, 6, 6, 6]
    assert [one.when for one in found.moments] == ["start", "before", "after", "end"]
    assert found.was.size.parameters == sum(one.numel() for one in Planted().parameters())
    assert found.became.size.parameters == sum(one.numel() for one in run.lightning_module.parameters())
    assert [one.name for one in found.was.layers] == ["net.0", "net.2", "net.4"]
    assert [one.name for one in found.became.layers] == ["net.0", "net.4"]
    assert all(one.snapshot.latency > 0 for one in found.moments)
    (event,) = found.agreements
    assert event.share == 1.0
    assert event.samples == 128
    ((before, after),) = found.similarities()
    assert (before[1].groups, after[1].groups) == ((2,) * 6, (1,) * 6)
    assert before[1].cosine[0, 1] == 100


def test_the_loss_is_that_of_the_batch(tmp_path):
    seen = {}

    class Watch(Planted):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            seen[self.global_step] = loss.item()
            return loss

    for accumulate in (1, 2):
        seen.clear()
        folder = tmp_path / str(accumulate)
        run = trainer(
            folder,
            [EmbeddingMonitor(every_n_steps=1)],
            logger=CSVLogger(folder, "", ""),
            max_epochs=1,
            accumulate_grad_batches=accumulate,
        )
        run.fit(Watch(), loader())
        loss = read_history(folder).curves["loss"]
        assert dict(zip(loss.steps, loss.values, strict=True)) == pytest.approx(seen, rel=1e-6)


def test_metrics_of_the_training_are_kept_by_epoch(tmp_path):
    class Judged(Planted):
        def validation_step(self, batch, _):
            self.log("accuracy", float(self.current_epoch))

    run = trainer(tmp_path, [EmbeddingMonitor()], logger=CSVLogger(tmp_path, "", ""), max_epochs=3)
    run.fit(Judged(), loader(), loader())
    assert list(read_history(tmp_path).metrics["accuracy"].values) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("logger", [False, True])
def test_nothing_is_written_where_nothing_is_logged(tmp_path, logger):
    trainer(tmp_path, [EmbeddingMonitor(), EmbeddingPruner(when=0)], logger=logger, fast_dev_run=logger).fit(
        Planted(), loader()
    )
    assert not list(tmp_path.rglob(NAME))


def test_a_failing_training_says_how_it_ended(tmp_path):
    class Failing(Planted):
        def on_train_epoch_start(self):
            if self.current_epoch == 2:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, [EmbeddingMonitor()], logger=CSVLogger(tmp_path, "", "")).fit(Failing(), loader())
    assert read_history(tmp_path).status == "stopped by ZeroDivisionError"


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("epoch", [1, 3])  # before and after the merges
def test_after_a_resume_what_came_later_is_superseded(tmp_path, epoch):
    def parts(folder):
        saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        pruner = EmbeddingPruner(**{**EXACT, "when": After(2, every_n_epochs=100)})
        callbacks = [EmbeddingMonitor(every_n_steps=1), pruner, saver]
        return trainer(folder, callbacks, logger=CSVLogger(tmp_path, "", ""), enable_checkpointing=True)

    parts(tmp_path / "first").fit(Planted(), loader())
    whole = read_history(tmp_path)
    parts(tmp_path / "second").fit(Planted(seed=5), loader(), ckpt_path=tmp_path / "first" / f"epoch={epoch}.ckpt")
    resumed = read_history(tmp_path)
    assert resumed.status == "finished"
    assert resumed.began == whole.began
    assert resumed.curves.keys() == whole.curves.keys()
    for name, curve in whole.curves.items():
        known = dict(zip(curve.steps, curve.values, strict=True))
        found = dict(zip(*vars(resumed.curves[name]).values(), strict=True))
        assert len(found) == len(resumed.curves[name])
        kept = found if epoch == 3 else [step for step in found if step < 2 * len(loader())]
        assert all(found[step] == known[step] for step in kept), name
    assert [one.layer for one in resumed.merges] == ["net.2", "net.0"]
    assert resumed.merge_steps[0] in (2 * len(loader()), 3 * len(loader()))  # once calibration data are there again
    assert [one.when for one in resumed.moments if one.when != "end"] == ["start", "before", "after"]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resume_in_another_folder_knows_the_merges_before_it(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(tmp_path, [EmbeddingPruner(**EXACT), saver], enable_checkpointing=True).fit(Planted(), loader())
    callbacks = [EmbeddingMonitor(), EmbeddingPruner(**EXACT), ModelCheckpoint(tmp_path / "second")]
    run = trainer(tmp_path, callbacks, logger=CSVLogger(tmp_path / "second", "", ""), enable_checkpointing=True)
    run.fit(Planted(), loader(), ckpt_path=tmp_path / "epoch=3.ckpt")
    assert [(one.layer, one.epoch) for one in read_history(tmp_path / "second").merges] == [("net.2", 2), ("net.0", 2)]


@given(st.integers(0, 400))
def test_a_file_torn_anywhere_gives_the_entries_that_are_whole(tmp_path_factory, end):
    file = HistoryFile(tmp_path_factory.mktemp("torn") / NAME)
    start(file)
    for step in range(5):
        sample(file, step, loss=float(step))
    file.flush()
    whole = file.path.read_bytes()
    kept = whole[: len(whole) - end]
    file.path.write_bytes(kept)
    lines = kept.count(b"\n")
    if lines == 0:
        return
    intact = sum(1 for line in kept.splitlines() if _is_json(line)) - 1
    assert len(read_history(file.path).curves.get("loss", ())) == intact
    # and what a new process appends is not torn by it
    again = HistoryFile(file.path)
    sample(again, 100, loss=7.0)
    again.flush()
    found = read_history(file.path)
    assert found.curves["loss"].values[-1] == 7.0
    assert len(found.curves["loss"]) == intact + 1
    assert file.path.read_bytes().startswith(kept)  # only ever appended to


def _is_json(line):
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def test_what_is_buffered_is_not_lost_for_long_and_a_run_can_be_read_while_it_goes_on(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("lightning_embed.reporting.history.time.monotonic", lambda: now[0])
    file = HistoryFile(tmp_path / NAME)
    start(file)
    file.flush()
    sample(file, 0, loss=1.0)
    assert "loss" not in read_history(tmp_path).curves
    now[0] = 6.0
    sample(file, 1, loss=0.5)
    found = read_history(tmp_path)
    assert list(found.curves["loss"].values) == [1.0, 0.5]
    assert found.status == "running or cut off"


def test_numbers_that_json_cannot_hold_are_null(tmp_path):
    file = HistoryFile(tmp_path / NAME)
    start(file)
    sample(file, 0, a=math.nan, b=math.inf, c=1.0)
    file.flush()
    line = json.loads((tmp_path / NAME).read_text().splitlines()[1], parse_constant=pytest.fail)
    assert line["values"] == {"a": None, "b": None, "c": 1.0}
    assert math.isnan(read_history(tmp_path).curves["a"].values[0])


def test_a_disk_that_fails_ends_the_history_and_not_the_training(tmp_path, caplog):
    (tmp_path / "logs").write_text("a file where the folder should be")
    file = HistoryFile(tmp_path / "logs" / NAME)
    start(file)
    file.flush()
    sample(file, 0, loss=1.0)
    file.flush()
    assert "history of this run ends here" in caplog.text


def test_lines_of_no_sense_are_counted(tmp_path):
    file = HistoryFile(tmp_path / NAME)
    start(file)
    file.flush()
    with (tmp_path / NAME).open("a") as text:
        text.write('[1]\n{"event": "sample"}\n{"event": "later invention", "step": 1}\n\xff\n')
    assert read_history(tmp_path).damaged == 4


def test_a_folder_without_history_is_refused_with_those_nearby(tmp_path):
    with pytest.raises(le.InputError, match="EmbeddingMonitor"):
        read_history(tmp_path)
    file = HistoryFile(tmp_path / "version_3" / NAME)
    start(file)
    file.flush()
    with pytest.raises(le.InputError, match="version_3"):
        read_history(tmp_path)
    (tmp_path / "other.jsonl").write_text("{}\n")
    with pytest.raises(le.InputError, match="holds no history"):
        read_history(tmp_path / "other.jsonl")


def test_of_a_result_all_is_told_that_is_known():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight[4:], model[0].bias[4:] = model[0].weight[:4], model[0].bias[:4]
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(400, 3, generator=generator)
    result = le.prune(model, data, criteria=le.Criteria(linearization=None, span=None, condensation=0.9999))
    found = history_of(result)
    assert found.title == type(model).__name__
    assert found.was.size.neurons == 14
    assert found.became.size.neurons == 10
    assert found.agreements[0].samples == 200
    assert found.agreements[0].share == result.records[-1].agreement
    assert [[when for when, _ in pair] for pair in found.similarities()] == [["before", "after"]]
    json.dumps(snapshot_entry(found.was), allow_nan=False)


def test_the_history_leaves_training_as_it_is(tmp_path):
    class Noisy(Planted):
        def forward(self, x):
            return nn.functional.dropout(self.net(x), 0.2, self.training)

    ends = []
    for logger in (False, CSVLogger(tmp_path, "", "")):
        model = Noisy()
        torch.manual_seed(7)
        callbacks = [EmbeddingMonitor(every_n_steps=2), EmbeddingPruner(**EXACT)]
        trainer(tmp_path, callbacks, logger=logger).fit(model, loader())
        ends.append([one.detach().clone() for one in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_of_two_processes_one_writes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.reporting.two_processes", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line)["event"] for line in (tmp_path / NAME).read_text().splitlines()]
    assert events == ["start", "sample", "sample", "epoch", "snapshot", "snapshot", "snapshot", "end"]
    assert read_history(tmp_path).status == "finished"
    assert len({one.name for one in (tmp_path / "figures").iterdir()}) == 4
