"""Draw sharing.svg: who shares a factor pair with whom, under six keys.

``python docs/images/sharing.py`` writes it beside this file; with ``--check`` it only says whether it is up
to date (exit code 1 if not). The colours are the pools of real plans, so the picture cannot lie.
"""

from __future__ import annotations

import sys
from colorsys import hls_to_rgb
from pathlib import Path

from bishare_dsl.language import parse_spec
from bishare_dsl.models.decoder import decoder
from bishare_dsl.plan import Plan, build_plan

KINDS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
LAYERS = 4
ROWS = (
    (
        "One colour is one factor pair (A, B). The three shares of bishare_ke.share, which add up:",
        (
            ("per module", "a pair for each module: LoRA"),
            ("per layer", "one pair for each layer"),
            ("per model", "one pair for the whole model"),
        ),
    ),
    (
        "Any other partition of the modules is written the same way:",
        (
            ("per kind", "one pair for each kind"),
            ("per parent, layer // 2", "attention and MLP apart, two layers together"),
            ("where parent mlp  per layer % 2", "only the MLP; odd and even layers apart"),
        ),
    ),
)
CELL, GAP, PANEL, HEIGHT, LEFT, TOP = (44, 22), 4, 300, 222, 58, 60


def plan(clauses: str) -> Plan:
    """The plan of one share with these clauses, for a small Llama."""
    shapes = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 8,
        "tie_word_embeddings": False,
    }
    text = f"spec picture target {', '.join(KINDS)} share one {clauses} rank 1 via SS"
    return build_plan(parse_spec(text), decoder("picture", None, shapes))[0]


def colours(count: int) -> list[str]:
    """As many colours, told apart by hue and then by lightness."""
    hues = min(count, 5)
    shades = -(-count // hues)
    found = []
    for i in range(count):
        hue = (0.58 + (i % hues) / hues) % 1
        light = 0.58 if shades == 1 else 0.44 + 0.36 * (i // hues) / (shades - 1)
        rgb = hls_to_rgb(hue, light, 0.55)
        found.append("#" + "".join(f"{round(255 * part):02x}" for part in rgb))
    return found


def text(x: float, y: float, words: str, kind: str) -> str:
    """A line of text; `kind` is its class in the style sheet."""
    words = words.replace("&", "&amp;").replace("  ", "\u00a0 ")
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def panel(x: int, y: int, clauses: str, meaning: str) -> list[str]:
    """One grid of modules, each in the colour of its pool."""
    made = plan(clauses)
    pools = [pool for pool in made.pools if pool.role == "A"]
    fill = {
        path: colour
        for pool, colour in zip(pools, colours(len(pools)), strict=True)
        for path in pool.members
    }
    drawn = [text(x, y, clauses, "code"), text(x, y + 18, meaning, "small")]
    for site in made.sites:
        column = x + KINDS.index(site.kind) * (CELL[0] + GAP)
        row = y + 30 + (LAYERS - 1 - site.layer) * (CELL[1] + GAP)
        drawn.append(
            f'<rect x="{column}" y="{row}" width="{CELL[0]}" height="{CELL[1]}" rx="3" '
            f'fill="{fill.get(site.path, "#eceff2")}"/>'
        )
    below = y + 30 + LAYERS * (CELL[1] + GAP) + 10
    drawn += [
        text(x + i * (CELL[0] + GAP) + CELL[0] / 2, below, kind.removesuffix("_proj"), "kind")
        for i, kind in enumerate(KINDS)
    ]
    return drawn


def picture() -> str:
    """The whole SVG."""
    width, height = LEFT + 3 * PANEL, TOP + 2 * HEIGHT - 44
    drawn = []
    for i, (title, panels) in enumerate(ROWS):
        y = TOP + i * HEIGHT
        drawn.append(text(LEFT, y - 30, title, "title"))
        for layer in range(LAYERS):
            row = y + 30 + (LAYERS - 1 - layer) * (CELL[1] + GAP) + CELL[1] / 2 + 4
            drawn.append(text(LEFT - 8, row, f"layer {layer}", "layer"))
        for j, (clauses, meaning) in enumerate(panels):
            drawn += panel(LEFT + j * PANEL, y, clauses, meaning)
    style = (
        "text{font-family:system-ui,'DejaVu Sans',sans-serif;fill:#24292f}"
        ".title{font-size:15px;font-weight:600}.small{font-size:12px;fill:#57606a}"
        ".code{font-size:13px;font-weight:600;font-family:ui-monospace,'DejaVu Sans Mono',monospace}"
        ".kind{font-size:11px;fill:#57606a;text-anchor:middle}"
        ".layer{font-size:11px;fill:#57606a;text-anchor:end}"
    )
    label = (
        "Grids of modules, layers up and kinds across, under six keys; modules of one colour "
        "share one factor pair"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"',
            f' aria-label="{label}">',
            f"<style>{style}</style>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
            *drawn,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    target = Path(__file__).with_suffix(".svg")
    if "--check" in sys.argv:
        sys.exit(not target.is_file() or target.read_text(encoding="utf-8") != picture())
    target.write_text(picture(), encoding="utf-8", newline="\n")
