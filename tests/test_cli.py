"""The command line, run as a user runs it."""

import json
import subprocess
import sys

import pytest

from lightning_embed import cli

KEYS = {"parameters", "hidden_layers", "neurons", "flops"}
ACCURACIES = {"unpruned_run", "before_merge", "after_merge", "final", "reloaded"}


def command(*arguments):
    code = "import sys; from lightning_embed.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("demo") for _ in range(2)]
    done = [
        command("demo", "--quiet", "--max-epochs", "12", "--seed", "1", "--output", str(folder)) for folder in folders
    ]
    return folders, done


def test_the_demo_writes_what_it_promises(runs):
    (folder, _), (done, _) = runs
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert KEYS | {"test_accuracy", "reloaded_identical", "merges"} <= summary.keys()
    assert all(set(summary[key]) == {"before", "after"} for key in KEYS)
    assert set(summary["test_accuracy"]) == ACCURACIES
    assert summary["reloaded_identical"] is True
    assert summary["test_accuracy"]["reloaded"] == summary["test_accuracy"]["final"]
    assert summary["parameters"]["after"] < summary["parameters"]["before"] == 75_658
    lines = (folder / "merges.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == summary["merges"]
    for pattern in ("model.ckpt", "metrics.csv", "events.out.tfevents.*"):
        assert list(folder.glob(pattern)), pattern
    for word in ("MPC", "width/cosine", "width/span", "bit for bit equal", "tensorboard --logdir"):
        assert word in done.stdout


def test_the_same_seed_gives_the_same_summary(runs):
    folders, _ = runs
    first, second = ((folder / "summary.json").read_text() for folder in folders)
    assert first == second
    assert str(folders[0]) not in first


def test_quiet_says_nothing_on_the_error_stream(runs):
    _, (done, _) = runs
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["demo", "--max-epochs", "0"], ["demo", "--seed", "x"]])
def test_bad_arguments_end_with_status_2_and_a_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: lightning-embed" in capsys.readouterr().err


def test_missing_packages_are_named_with_the_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.delitem(sys.modules, "lightning_embed.demo", raising=False)
    monkeypatch.delattr("lightning_embed.demo", raising=False)
    assert cli.main(["demo"]) == 2
    assert "pip install 'lightning-embed[demo]'" in capsys.readouterr().err
