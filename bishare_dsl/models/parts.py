"""What part a linear map plays in its block or its model, told by the names that families give it."""

from __future__ import annotations

from collections.abc import Mapping

from bishare_dsl.models.site import Site

_ATTENTION: Mapping[str, str] = {
    "attention_inputs": "q_proj k_proj v_proj qkv_proj query_key_value c_attn Wqkv qkv query key value q k v "
    "q_lin k_lin v_lin query_proj key_proj value_proj q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj",
    "attention_outputs": "o_proj out_proj c_proj dense o Wo out_lin",
}
_ELSEWHERE: Mapping[str, str] = {
    "mlp_gates": "gate_proj gate_up_proj w1 wi_0 Wi",
    "mlp_ups": "up_proj gate_up_proj w3 wi_1 Wi wi c_fc fc1 fc_in lin1 dense_h_to_4h intermediate.dense",
    "mlp_downs": "down_proj w2 wo Wo c_proj fc2 fc_out lin2 dense_4h_to_h output.dense",
}

_OUTSIDE: Mapping[str, str] = {
    "heads": "lm_head embed_out output_projection proj_out score classifier qa_outputs decoder",
    "embeddings": "embed_tokens wte embed_in word_embeddings tok_embeddings shared",
}

PARTS = (*_ATTENTION, *_ELSEWHERE, *_OUTSIDE)
"""The parts there are, under names that a spec may use as it uses a `let`'s."""

_OF: Mapping[bool, Mapping[str, frozenset[str]]] = {
    attends: {
        name: frozenset(part for part, names in table.items() if name in names.split())
        for name in " ".join(table.values()).split()
    }
    for attends, table in ((True, _ATTENTION), (False, _ELSEWHERE))
}


def part_called(name: str) -> str | None:
    """Return the part that some family of models calls so."""
    found = {*_OF[True].get(name, ()), *_OF[False].get(name, ()), *parts_outside(name)}
    return min(found, default=None)


def parts_outside(kind: str) -> frozenset[str]:
    """Return the parts that a module of this kind plays, where it is in no block."""
    return frozenset(part for part, names in _OUTSIDE.items() if kind in names.split())


def parts(site: Site) -> frozenset[str]:
    """Return the parts that a site plays: more than one where its weight is of several maps."""
    if site.layer is None:
        return frozenset(part for kind in site.kinds for part in parts_outside(kind))
    ancestors, _, _ = site.path.rpartition(".")
    names = _OF["att" in ancestors.lower()]
    return names.get(f"{site.parent}.{site.kind}") or names.get(site.kind) or frozenset()
