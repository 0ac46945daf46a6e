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


@pytest.mark.parametrize("name", ["demo", "report", "show"])
def test_every_command_has_a_help_with_its_arguments(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: lightning-embed {name}" in said
    assert {"demo": "--seed", "report": "RUN_DIR", "show": "CKPT"}[name] in said


def test_the_demo_leaves_a_page_that_report_can_make_again(runs, tmp_path, capsys):
    (folder, _), (done, _) = runs
    assert str(folder / "report.html") in done.stdout
    assert cli.main(["report", str(folder), "--output", str(tmp_path / "again.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == (folder / "report.html").read_text()


def test_show_prints_the_architecture_and_the_merges_in_plain_text_when_piped(runs, capsys):
    (folder, _), _ = runs
    assert cli.main(["show", str(folder / "model.ckpt")]) == 0
    said = capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    done = [one for one in summary["merges"] if one["done"]]
    assert said.startswith(f"model.ckpt, epoch 12, step {12 * 15}: {summary['parameters']['after']:,} numbers")
    rows = [line for line in said.splitlines() if any(one["criterion"] in line for one in done)]
    assert len([line for line in rows if line.lstrip()[0].isdigit()]) == len(done)
    assert "identity" in said
    assert "\x1b" not in said


def test_show_is_rich_on_a_terminal(runs):
    pytest.importorskip("rich")
    from io import StringIO

    from lightning_embed.reporting.checkpoint import describe_checkpoint
    from lightning_embed.reporting.terminal import show

    class Terminal(StringIO):
        def isatty(self):
            return True

    (folder, _), _ = runs
    terminal = Terminal()
    show(describe_checkpoint(folder / "model.ckpt"), terminal)
    assert "┃" in terminal.getvalue()
    assert "net.10" in terminal.getvalue()


def test_show_of_what_is_no_checkpoint_says_why(tmp_path, capsys):
    import torch

    import lightning_embed as le

    (tmp_path / "text.ckpt").write_text("no checkpoint")
    torch.save([1, 2], tmp_path / "list.pt")
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    for name, why in (("none.ckpt", "is no file"), ("text.ckpt", "cannot be read"), ("list.pt", "no state dict")):
        assert cli.main(["show", str(tmp_path / name)]) == 2
        assert why in capsys.readouterr().err
    assert cli.main(["show", str(tmp_path / "bare.pt")]) == 0
    assert "does not describe its architecture" in capsys.readouterr().out
    le.attach(model)
    torch.save(model.state_dict(), tmp_path / "attached.pt")
    assert cli.main(["show", str(tmp_path / "attached.pt")]) == 0
    assert "nothing was merged" in capsys.readouterr().out  # the key is there only while something is
