"""Plot `results/serving.json`: counted memory and measured speed by number of adapters."""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
from harness.result import RESULTS

COUNTS = (1, 16, 64, 256, 1024)


def main() -> None:
    results = json.loads((RESULTS / "serving.json").read_text())
    each = {row["where"]: row for row in results["bytes_an_adapter"]["rows"]}
    figure, (memory, speed) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name in ("compact KE", "plain LoRA r=8"):
        bytes_each = sum(row[name] for row in each.values())
        memory.loglog(COUNTS, [n * bytes_each / 2**20 for n in COUNTS], marker="o", label=name)
    memory.set(xlabel="adapters, all active", ylabel="MiB in slots and host cache, counted")
    memory.legend(frameon=False)
    rows = results["speed_by_adapters"]["rows"]
    for mode, name in (("compact", "compact KE"), ("plain", "plain LoRA r=8")):
        points = [(row["adapters"], row["x base"]) for row in rows if row["engine"] == mode]
        speed.semilogx(*zip(*points, strict=True), marker="o", label=name, base=2)
    speed.set(xlabel="adapters among 64 requests", ylabel="tokens a second, x base", ylim=(0, 1))
    for axes in (memory, speed):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "serving.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
