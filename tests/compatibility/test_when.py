"""When to merge: every object answers where it should, and a resumed one as one that was not interrupted."""

import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import lightning_embed as le
from lightning_embed.callbacks import After, EmbeddingPruner, NearCriticalPoint, NearEnd, OnPlateau, When
from tests.compatibility.training import EXACT, Batches, Net, merges, ours, trainer


def asked(when, series, start=0):
    """At which epochs an object says yes, of metrics of the epochs before."""
    yes = []
    for epoch, metrics in enumerate(series, start):
        run = SimpleNamespace(current_epoch=epoch - 1, callback_metrics=metrics, check_val_every_n_epoch=1)
        if metrics:
            when.observe(run)
        run.current_epoch = epoch
        if when(run, None):
            yes.append(epoch)
    return yes


def losses(*values, gradients=()):
    values = [{"loss": torch.tensor(value, dtype=torch.float64)} for value in values]
    for one, gradient in zip(values, gradients, strict=False):
        one["grad_norm/l1"] = torch.tensor(gradient)
    return [{}, *values]


@pytest.mark.cell("When to merge", "on a plateau of a monitored metric (`OnPlateau`)")
def test_a_plateau_is_patience_epochs_without_an_improvement():
    falling = losses(1.0, 0.9, 0.8, 0.8, 0.7999, 0.8, 0.5, 0.5, 0.5, 0.5)
    assert asked(OnPlateau("loss", patience=2), falling) == [5, 9]
    assert asked(OnPlateau("loss", patience=2, start=6), falling) == [6, 9]
    assert asked(OnPlateau("loss", patience=3, mode="max"), losses(0.1, 0.2, 0.2, 0.2, 0.2)) == [5]


@pytest.mark.cell("When to merge", "near a critical point: small decrease and small gradient (`NearCriticalPoint`)")
def test_both_the_decrease_and_the_gradient_have_to_be_small():
    when = NearCriticalPoint("loss", decrease=0.01, gradient=0.1)
    series = losses(1.0, 0.5, 0.499, 0.498, 0.2, 0.199, gradients=(10.0, 5.0, 4.0, 0.5, 0.4, 0.3))
    assert asked(when, series) == [4, 6]


@pytest.mark.parametrize("make", [lambda: OnPlateau("loss", 2), lambda: NearCriticalPoint("loss")])
def test_what_was_learnt_survives_a_resume(make):
    values = (1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8)
    series = losses(*values, gradients=(9.0, 8.0, 0.7, 0.7, 0.5, 2.0, 0.1, 0.1, 0.1))
    whole = asked(make(), series)
    assert len(whole) > 1
    for cut in range(1, len(series)):
        first, second = make(), make()
        before = asked(first, series[:cut])
        second.load_state_dict(first.state_dict())
        assert before + asked(second, series[cut:], cut) == whole


@pytest.mark.parametrize(
    ("when", "epochs"),
    # an event in vain is followed by twice as long a wait
    [(0.5, [3, 5]), (2, [2, 4]), (After(0, every_n_epochs=3), [1]), (NearEnd(2), [4])],
    ids=["share", "epoch", "every n", "near the end"],
)
@pytest.mark.cell("When to merge", "after a share, from an epoch, every n epochs, once near the end")
def test_events_in_a_real_training(tmp_path, when, epochs):
    pruner = EmbeddingPruner(le.Criteria(0.0, None, None), le.Tolerance(0.0), when=when)
    trainer(tmp_path, [pruner], logger=CSVLogger(tmp_path, "", "")).fit(Net(), Batches())
    told = [json.loads(line) for line in (tmp_path / "merges.jsonl").read_text().splitlines()]
    assert sorted({one["epoch"] for one in told}) == epochs
    assert all(not one.done for one in pruner.records)


@pytest.mark.parametrize("when", [OnPlateau("loss_epoch", 1, threshold=1.0), NearCriticalPoint("loss_epoch", 1.0, 1.0)])
@pytest.mark.cell("When to merge", "by metrics of a real training ({when})")
def test_metrics_of_a_real_training_are_read(tmp_path, when):
    run = trainer(tmp_path, ours(when=when))
    run.fit(Net(), Batches())
    assert merges(run)[0][2] == 2


@pytest.mark.parametrize(
    "make",
    [lambda: OnPlateau("loss_epoch", 2, threshold=0.5), lambda: NearCriticalPoint("loss_epoch", 1.0, 1.0, start=2)],
)
@pytest.mark.cell("When to merge", "by metrics: resumed at the end of any epoch = uninterrupted")
def test_a_run_resumed_between_two_looks_merges_when_the_whole_one_does(tmp_path, make):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, auto_insert_metric_name=False)
    whole = trainer(tmp_path, [*ours(when=make()), saver], enable_checkpointing=True)
    whole.fit(Net(), Batches())
    assert merges(whole)
    for epoch in (0, 1, 2):
        resumed = trainer(tmp_path, ours(when=make()))
        resumed.fit(Net(seed=1), Batches(), ckpt_path=tmp_path / f"{epoch}.ckpt")
        assert merges(resumed) == merges(whole)


def test_epochs_without_a_new_value_do_not_count_and_neither_does_what_is_not_finite():
    stale = torch.tensor(1.0)
    assert asked(OnPlateau("loss", 2), [{}, *({"loss": stale} for _ in range(8))]) == []
    assert asked(OnPlateau("loss", 2), losses(float("inf"), 3.0, float("nan"), 2.0, 1.0, 0.5)) == []


def test_a_second_fit_begins_anew(tmp_path):
    when = OnPlateau("loss_epoch", 1, threshold=1.0)
    epochs = []
    for _ in range(2):
        run = trainer(tmp_path, ours(when=when))
        run.fit(Net(), Batches())
        epochs.append(merges(run))
    assert epochs[0] == epochs[1] != []


@pytest.mark.parametrize("when", [After(10), After(0.9), NearEnd(5)])
def test_a_dry_run_is_not_refused(tmp_path, when):
    trainer(tmp_path, [EmbeddingPruner(EXACT, when=when)], fast_dev_run=True).fit(Net(), Batches())


@pytest.mark.cell("When to merge", "a metric that is not logged: a clear error")
def test_a_metric_that_nobody_logs_is_named(tmp_path):
    with pytest.raises(le.InputError, match=r"'accuracy', which is not logged; logged are: .*loss_epoch"):
        trainer(tmp_path, ours(when=OnPlateau("accuracy"))).fit(Net(), Batches())
    alone = [EmbeddingPruner(EXACT, when=NearCriticalPoint("loss_epoch"))]
    with pytest.raises(le.InputError, match="Put an EmbeddingMonitor beside it"):
        trainer(tmp_path, alone).fit(Net(), Batches())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: After(1.5), "share"),
        (lambda: After(0, every_n_epochs=0), "every_n_epochs"),
        (lambda: NearEnd(0), "epochs"),
        (lambda: OnPlateau("loss", patience=0), "patience"),
        (lambda: OnPlateau("loss", mode="less"), "mode"),
        (lambda: NearCriticalPoint("loss", decrease=-1.0), "decrease"),
        (lambda: NearCriticalPoint("loss", start=0.5), "start"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(le.InputError, match=message):
        make()


def test_an_end_that_does_not_come_is_refused(tmp_path):
    for epochs, message in ((-1, "no planned end"), (2, "plans 2 epochs")):
        with pytest.raises(le.InputError, match=message):
            trainer(tmp_path, ours(when=NearEnd(3)), max_epochs=epochs).fit(Net(), Batches())


def test_one_that_does_not_answer_is_told_so(tmp_path):
    with pytest.raises(NotImplementedError, match="override __call__"):
        trainer(tmp_path, ours(when=When())).fit(Net(), Batches())
