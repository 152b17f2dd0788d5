"""The folder of an analysis: one page, the figures, and a picture of each heat map."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from bishare_dsl.analyse import heat
from bishare_dsl.analyse.analysis import Analysis, Chart
from bishare_dsl.analyse.figures import figures
from bishare_dsl.analyse.page import page

PAGE, FIGURES = "analysis.html", "figures.json"


def write(folder: Path, analyses: Sequence[Analysis], between: Sequence[Chart]) -> None:
    """Write all files into a folder that is there and empty.

    Raises:
        OSError: the system refuses.
    """
    (folder / PAGE).write_text(page(analyses, between), encoding="utf-8")
    (folder / FIGURES).write_text(
        json.dumps(figures(analyses, between), indent=1) + "\n", encoding="utf-8"
    )
    drawn = [(a.adapter.name, chart) for a in analyses for chart in a.charts]
    drawn += [("between", chart) for chart in between]
    for name, chart in drawn:
        said = f"{name} {chart.map.measure} {chart.map.title}"
        file = re.sub(r"[^\w.-]+", "_", said, flags=re.ASCII)
        (folder / f"{file}.svg").write_text(heat.whole(name, chart), encoding="utf-8")
