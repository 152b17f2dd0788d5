"""A region, a list of passes, and the graphs that come out: one text file a case, in `filecheck`.

    UPDATE_GOLDEN=1 pytest tests/rewrite/test_filecheck.py

writes what comes out into the files, for `git diff` to show. A file says at its top what it shows; its section
`factors` may be left out. Each case is also compared with its dense reference.
"""

import operator
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from bishare_dsl.batched.read_rows import ReadRows
from bishare_dsl.language import parse_spec
from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.plan import build_plan
from bishare_dsl.rewrite.adapt import compile_plan
from bishare_dsl.rewrite.passes import OPTIMISATIONS
from tests.support.regions import DrawnRegion, Layers, check_region

CASES = sorted((Path(__file__).parent / "filecheck").glob("*.txt"))
PASSES = {type(step).__name__: step for step in (*OPTIMISATIONS, ReadRows())}
SECTION = re.compile(r"^(\w+):\n((?:    .*\n|\n)*)", re.MULTILINE)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_graphs_are_these(path):
    text = path.read_text()
    given = {
        name: body.replace("\n    ", "\n")[4:].rstrip() for name, body in SECTION.findall(text)
    }
    region = region_of(given["layers"], given["forward"])
    spec = parse_spec(f"spec drawn\n{given['spec']}")
    first, *names = given["passes"].split()
    assert first == "ExpandTerms"
    drawn = DrawnRegion(Layers(region).double(), 4, spec, tuple(PASSES[n] for n in names), False)
    model = Layers(region_of(given["layers"], given["forward"]))
    plan, _ = build_plan(spec, inspect_model(model))
    found = {}
    compile_plan(
        model,
        plan,
        observe=lambda _, __, graphs: found.update(
            graph=shown(graphs.forward), factors=shown(graphs.assembly)
        ),
        optimisations=drawn.optimisations,
    )
    if "factors" not in given:
        del found["factors"]
    if os.environ.get("UPDATE_GOLDEN"):
        kept = "".join(match[0] for match in SECTION.finditer(text) if match[1] not in found)
        about = text[: SECTION.search(text).start()]
        written = "".join(
            f"{name}:\n" + "".join(f"    {line}\n" for line in lines)
            for name, lines in found.items()
        )
        path.write_text(about + kept + written)
        return
    assert {name: given[name].splitlines() for name in found} == found
    if "ReadRows" in names:
        return  # It runs in a batch of many adapters only.
    for training in (False, True):
        check_region(DrawnRegion(drawn.model, 4, spec, drawn.optimisations, training))


def region_of(layers, forward):
    """A module with some layers and a forward."""
    body = "".join(f"    {line}\n" for line in forward.splitlines())
    namespace = {"torch": torch, "__name__": __name__}
    exec(f"def forward(self, x):\n{body}", namespace)
    region = type("Region", (nn.Module,), {"forward": namespace["forward"]})()
    for name, what, *width in (line.split() for line in layers.splitlines()):
        region.add_module(
            name, nn.Linear(int(what), int(width[-1])) if width else getattr(nn, what)()
        )
    return region


def shown(graph):
    """A graph as one line for each node, less its placeholders."""

    def show(value):
        match value:
            case slice():
                return f"{show(value.start)}:{show(value.stop)}".replace("None", "")
            case tuple() | list():
                return "(" + ", ".join(map(show, value)) + ")"
            case _:
                return "..." if value is ... else str(value)

    lines = []
    for node in graph.nodes:
        args = show(node.args)
        match node.op:
            case "placeholder":
                continue
            case "output":
                lines.append(f"return {show(node.args[0])}")
                continue
            case "get_attr":
                value = f"self.{node.target}"
            case "call_module":
                value = f"self.{node.target}{args}"
            case "call_method":
                value = f"{node.args[0]}.{node.target}{show(node.args[1:])}"
            case _ if node.target is operator.getitem:
                value = f"{node.args[0]}[{show(node.args[1]).strip('()')}]"
            case _:
                value = f"{node.target.__name__}{args}"
        assert not node.kwargs
        lines.append(f"{node.name} = {value}")
    return lines
