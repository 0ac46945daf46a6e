"""What the demo promises, checked on the files that it wrote."""

import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
for key in ("parameters", "hidden_layers", "neurons", "flops"):
    assert summary[key]["after"] < summary[key]["before"], key
per_layer = {key: summary["neurons"][key] / summary["hidden_layers"][key] for key in ("before", "after")}
assert per_layer["after"] <= per_layer["before"] / 2, per_layer
assert summary["reloaded_identical"] is True
reached = summary["test_accuracy"]
assert reached["reloaded"] == reached["final"]
assert reached["unpruned_run"] - reached["final"] <= 0.015, reached
assert any(one["kind"] == "layer" and one["done"] for one in summary["merges"])
lines = (folder / "merges.jsonl").read_text(encoding="utf-8").splitlines()
assert [json.loads(line) for line in lines] == summary["merges"]
for pattern in ("model.ckpt", "metrics.csv", "events.out.tfevents.*", "history.jsonl", "report.html"):
    assert list(folder.glob(pattern)), pattern
print("the demo kept its promises:", json.dumps(reached))
