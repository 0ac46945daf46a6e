"""What merging costs the demonstration in test accuracy: seeds 0 to 4, with and without the pruner, side by side."""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

from tabulate import tabulate

from lightning_embed import demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-epochs", type=int, default=demo.EPOCHS)
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            summary = demo.run(Path(folder), seed=seed, epochs=options.max_epochs, quiet=True)
        reached = summary["test_accuracy"]
        loss = 100 * (reached["unpruned_run"] - reached["final"])
        sizes = [f"{summary[key]['before']} → {summary[key]['after']}" for key in ("parameters", "hidden_layers")]
        per_layer = [summary["neurons"][when] / summary["hidden_layers"][when] for when in ("before", "after")]
        kept = f"{per_layer[1] / per_layer[0]:.0%}"
        rows.append([seed, *sizes, kept, reached["unpruned_run"], reached["final"], loss])
    heads = ["seed", "parameters", "hidden layers", "neurons kept per layer", "unpruned", "pruned", "loss (points)"]
    print(tabulate(rows, headers=heads, floatfmt=("", "", "", "", ".4f", ".4f", ".2f")))
    losses = [row[-1] for row in rows]
    print(f"mean loss {sum(losses) / len(losses):.2f} points, worst {max(losses):.2f}")


if __name__ == "__main__":
    main()
