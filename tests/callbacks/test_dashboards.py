"""Figures and texts reach the real dashboards, and are read back from where these keep them."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_embed as le
from lightning_embed.callbacks import EmbeddingMonitor, EmbeddingPruner
from lightning_embed.callbacks.dashboards import send_merges
from tests.callbacks.runs import Planted, loader, trainer
from tests.reporting.histories import EXACT

FIGURES = {"mpc", "widths", "training", "similarity", "agreement"}


def fit(folder, loggers, every=3, epochs=6):
    callbacks = [EmbeddingMonitor(every_n_steps=2, figures_every_n_epochs=every), EmbeddingPruner(**EXACT)]
    run = trainer(folder, callbacks, logger=loggers, max_epochs=epochs)
    run.fit(Planted(), loader())
    return run


def size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_tensorboard_holds_every_figure_and_the_merges_as_text(tmp_path):
    fit(tmp_path, [TensorBoardLogger(tmp_path, "", ""), CSVLogger(tmp_path / "csv", "", "")])
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    assert {tag.removeprefix("lightning-embed/") for tag in events.Tags()["images"]} == FIGURES
    mpc = events.Images("lightning-embed/mpc")
    assert [one.step for one in mpc] == [24, 48]  # at the ends of epochs 3 and 6, on the axis of the scalars
    width, height = size(mpc[-1].encoded_image_string)
    assert width > 400 < height + 200
    (text,) = events.Tensors("lightning-embed/merges/text_summary")
    said = text.tensor_proto.string_val[0].decode()
    assert "merged `net.2` (linearization), 8 → 0 neurons" in said
    assert "merged `net.0` (condensation), 12 → 6 neurons" in said
    assert text.step == 16
    assert not list(tmp_path.rglob("*.png"))  # TensorBoard took them


def test_where_no_logger_takes_figures_they_are_png_files(tmp_path):
    fit(tmp_path, CSVLogger(tmp_path, "", ""), every=6)
    files = list((tmp_path / "figures").iterdir())
    assert {one.name for one in files} == {f"{name}-00000048.png" for name in FIGURES}
    for one in files:
        assert min(size(one.read_bytes())) > 300


def test_without_asking_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_embed.callbacks.dashboards.figures", lambda history: pytest.fail("was drawn"))
    fit(tmp_path, CSVLogger(tmp_path, "", ""), every=None, epochs=3)
    assert (tmp_path / "history.jsonl").exists()
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "often"])
def test_a_number_of_epochs_that_is_none_is_refused(value):
    with pytest.raises(le.InputError, match="figures_every_n_epochs"):
        EmbeddingMonitor(figures_every_n_epochs=value)


def test_missing_matplotlib_is_told_at_once(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lightning-embed\[figures\]"):
        EmbeddingMonitor(figures_every_n_epochs=1)
    EmbeddingMonitor()


def test_a_dashboard_that_fails_ends_no_training(tmp_path, caplog):
    class Broken(CSVLogger):
        def log_image(self, **_):
            raise ConnectionError("the line is dead")

        def log_text(self, **_):
            raise ConnectionError("the line is dead")

    run = fit(tmp_path, Broken(tmp_path, "", ""), every=6)
    assert run.current_epoch == 6
    assert "the line is dead" in caplog.text
    assert len(list((tmp_path / "figures").iterdir())) == len(FIGURES)  # so that they are not lost


def test_names_cannot_break_out_of_their_quotes():
    said = []

    class Writer:
        def add_figure(self):
            raise AssertionError

        def add_text(self, tag, text, step):
            said.append((tag, text, step))

    class Logger:
        experiment = Writer()

    record = le.Record("layer", "a`b_c_d", "linearization", done=True, change=0.5, width=(3, 0), epoch=1, step=7)
    send_merges([Logger()], [record], [record], 7)
    assert said == [
        ("lightning-embed/merges", "- Epoch 1: merged `ab_c_d` (linearization), 3 → 0 neurons, change 0.5000 []", 7)
    ]


@pytest.mark.filterwarnings("ignore")  # of wandb and what it imports
def test_wandb_offline_holds_figures_and_a_table_of_merges(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb: pip install 'lightning-embed[dashboards]'")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    logger = WandbLogger(save_dir=tmp_path, project="lightning-embed", offline=True)
    try:
        fit(tmp_path, logger, every=6)
        folder = tmp_path / "wandb"
        deadline = time.monotonic() + 30
        media = []
        while len(media) < len(FIGURES) and time.monotonic() < deadline:
            media = [one for one in folder.rglob("*.png") if "media" in one.parts]
            time.sleep(0.2)
    finally:
        logger.experiment.finish()
    assert {one.name.rsplit("_", 2)[0] for one in media} == FIGURES
    (table,) = folder.rglob("*.table.json")
    held = json.loads(table.read_text())
    assert held["columns"][2:4] == ["layer", "criterion"]
    assert [(row[2], row[3]) for row in held["data"]] == [("net.2", "linearization"), ("net.0", "condensation")]


@pytest.mark.slow  # a server takes half a minute to come up
@pytest.mark.filterwarnings("ignore")  # of mlflow and what it imports
def test_a_real_mlflow_server_holds_figures_and_the_text_of_merges(tmp_path):
    pytest.importorskip("mlflow", reason="needs mlflow: pip install 'lightning-embed[dashboards]'")
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow.tracking import MlflowClient

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    store = f"sqlite:///{tmp_path / 'store.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", str(tmp_path / "artifacts")]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
    try:
        _wait(url, server)
        logger = MLFlowLogger("lightning-embed", tracking_uri=url)
        fit(tmp_path, logger, every=6)
        client = MlflowClient(url)
        held = {one.path for one in client.list_artifacts(logger.run_id, "lightning-embed")}
        assert held == {f"lightning-embed/{name}-00000048.png" for name in FIGURES} | {"lightning-embed/merges.txt"}
        text = client.download_artifacts(logger.run_id, "lightning-embed/merges.txt", str(tmp_path))
        assert "merged net.2 (linearization), 8 → 0 neurons" in Path(text).read_text(encoding="utf-8")
        shown = client.download_artifacts(logger.run_id, "lightning-embed/mpc-00000048.png", str(tmp_path))
        assert min(size(Path(shown).read_bytes())) > 300
        assert math.isfinite(client.get_metric_history(logger.run_id, "mpc/net.0")[0].value)
    finally:
        _stop(server)


def _wait(url, server, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the MLflow server did not come up (exit status {server.poll()})")


def _stop(server):
    os.killpg(server.pid, signal.SIGTERM)  # the group that was started here: the server and its worker
    server.wait(timeout=30)
