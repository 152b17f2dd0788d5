"""The loss as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bishare_dsl.writing import replace_file

CURVE = "loss.png"


def can_draw() -> bool:
    """Tell whether matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def draw_curve(folder: Path, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw the losses that were logged into ``loss.png``; nothing where none was.

    Args:
        folder: of the run.
        history: the Trainer's: dicts with ``step``, and ``loss`` or ``eval_loss``.
        title: of the picture.

    Raises:
        OSError: the system refused.
    """
    lines = {
        label: [(h["step"], h[key]) for h in history if key in h]
        for key, label in (("loss", "training"), ("eval_loss", "held out"))
    }
    if not any(lines.values()):
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Neither pyplot nor a global backend: whoever calls us may be drawing, too.
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (label, points), style in zip(lines.items(), ("-", "o-"), strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.5, markersize=4)
    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    replace_file(folder / CURVE, picture.getvalue())
