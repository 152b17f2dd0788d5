"""What `bishare propose` says, and ranks by the energy of gradients: files, measured as they are."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from bishare_dsl.adapter.files import read_adapter
from bishare_dsl.analyse.propose.evidence import Evidence, of_adapters, of_gradients
from bishare_dsl.analyse.propose.gradients import gradients
from bishare_dsl.analyse.propose.proposal import propose
from bishare_dsl.analyse.read import read_updates
from storing import placing
from storing.bases import BASES, Base
from storing.jobs import TUNING, Cell
from storing.methods import FIVE, SPECS, architecture
from storing.pairs import pairs
from storing.store import trained

SEVEN = (*FIVE, "o_proj", "gate_proj")
RATE = 1e-2
"""Of the LoRA that is trained to propose of."""


def propose_all(bases: Sequence[str]) -> None:
    """Write the proposals for every budget of some bases, of keys of one token."""
    SPECS.mkdir(exist_ok=True)
    for name in bases:
        base, shapes = BASES[name], architecture(name)
        cell = Cell(name, "one", base.primary)
        five, seven = (placing.sites(shapes, kinds) for kinds in (FIVE, SEVEN))
        found = {
            "proposed_gradients": gradients(base.load(), five, _batches(base, cell.pairs), seed=0),
            "proposed_seven": gradients(base.load(), seven, _batches(base, cell.pairs), seed=0),
        }
        for budget in base.budgets:
            for method, energies in found.items():
                _write(
                    method, base, budget, of_gradients(shapes, energies, "gradients of all pairs")
                )
                of_ranks = {site: g.values.square().tolist() for site, g in energies.items()}
                text = placing.by_energy(of_ranks, budget)
                name_of = "energy" if method == "proposed_gradients" else "energy_seven"
                _file(name_of, base, budget).write_text(text)
            _write("proposed", base, budget, _of_lora(cell))


def _write(method: str, base: Base, budget: int, evidence: Evidence) -> None:
    # The nearest that it makes within a budget: it keeps to it, others may be a little above.
    allowed = int(budget * (1 + placing.NEAR / 2))
    _file(method, base, budget).write_text(propose(evidence, allowed).text)


def _file(method: str, base: Base, budget: int) -> Any:
    return SPECS / f"{method}-{base.name}-{budget}.share"


def _batches(base: Base, count: int) -> list[dict[str, torch.Tensor]]:
    found = pairs(base, "one", count, TUNING)
    ids = torch.cat([found.keys, found.tokens[found.values][:, None]], 1)
    labels = torch.cat([torch.full_like(found.keys, -100), ids[:, -1:]], 1)
    return [
        {"input_ids": ids[part], "labels": labels[part]} for part in torch.arange(count).split(64)
    ]


def _of_lora(cell: Cell) -> Evidence:
    """Return the updates of a LoRA r=8 that has stored the pairs of the tuning seed."""
    model = trained(cell.work(), ("lora", {"r": 8}), RATE, TUNING)
    with tempfile.TemporaryDirectory() as folder:
        model.bishare.save_pretrained(folder)
        return of_adapters([read_updates("a LoRA r=8", read_adapter(folder))])
