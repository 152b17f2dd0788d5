"""One product for all the terms of a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import fx

from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.passes.fuse_downs import FuseDowns
from bishare_dsl.rewrite.region import ROWS, Pass, RegionGraphs

Run = tuple[fx.Node, int, int]
"""Columns that stand side by side: the tensor they are of, the first of them, and how many."""


@dataclass(frozen=True)
class AccumulateUps(Pass):
    """Before: ``up(... up(y, z_1, B_1) ..., z_n, B_n)``. After: ``up(y, cat(z_1 ...), cat(B_1 ...))``.

    The target's output is read and written once, however many shares cover it. The terms are taken in the
    order of their columns, and columns that stand side by side in one ``z`` together, so that most targets
    need no ``cat`` of them.
    """

    # Whose columns stand side by side is known.
    behind = (FuseDowns,)

    def run(self, region: RegionGraphs) -> None:
        graph = region.forward
        for last in [node for node in graph.nodes if node.target is ops.up]:
            if any(user.target is ops.up and user.args[0] is last for user in last.users):
                continue
            chain = [last]
            while isinstance(y := chain[0].args[0], fx.Node) and y.target is ops.up:
                chain.insert(0, y)
            if len(chain) == 1:
                continue
            ordered = sorted(chain, key=_place)
            with graph.inserting_after(region.last_factor_node()):
                factor = graph.call_function(torch.cat, ([node.args[2] for node in ordered],))
            with graph.inserting_before(last):
                columns = _side_by_side(graph, [node.args[1] for node in ordered])
                if len(columns) > 1:
                    columns = [graph.call_function(torch.cat, (columns, -1))]
                total = graph.call_function(ops.up, (y, columns[0], factor))
            last.replace_all_uses_with(total)
            for node in reversed(chain):
                graph.erase_node(node)
        for node in reversed(graph.nodes):
            if node.op == "call_method" and node.target == "narrow" and not node.users:
                graph.erase_node(node)


def _place(up: fx.Node) -> int:
    """Find where the columns of a term begin."""
    return runs_of(cast(fx.Node, up.args[1]))[0][1]


def _side_by_side(graph: fx.Graph, columns: list[fx.Node]) -> list[fx.Node]:
    """Take neighbours in one tensor together; the columns stay the same, in the same order."""
    joined: list[Run] = []
    for z, start, rows in (run for column in columns for run in runs_of(column)):
        if joined and joined[-1][0] is z and sum(joined[-1][1:]) == start:
            joined[-1] = (z, joined[-1][1], joined[-1][2] + rows)
        else:
            joined.append((z, start, rows))
    return [
        z if rows == z.meta[ROWS] else graph.call_method("narrow", (z, -1, start, rows))
        for z, start, rows in joined
    ]


def runs_of(node: fx.Node) -> tuple[Run, ...]:
    """Find the columns that a node consists of."""
    if node.target is torch.cat:
        return tuple(run for part in cast(list[fx.Node], node.args[0]) for run in runs_of(part))
    if node.target == "narrow":
        z, _, start, rows = cast(tuple[fx.Node, int, int, int], node.args)
        return ((z, start, rows),)
    return ((node, 0, node.meta[ROWS]),)
