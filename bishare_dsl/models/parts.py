"""Map the layer names of model families to parts, such as `attention_inputs`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from bishare_dsl.models.site import Site

_ATTENTION: Mapping[str, str] = {
    "attention_inputs": "q_proj k_proj v_proj qkv_proj query_key_value c_attn Wqkv W_pack qkv query key "
    "value q k v wq wk wv w_q w_k w_v to_q to_k to_v "
    "q_lin k_lin v_lin query_proj key_proj value_proj q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj",
    "attention_outputs": "o_proj out_proj c_proj dense o Wo wo w_o to_out out_lin",
}
_MLP: Mapping[str, str] = {
    "mlp_gates": "gate_proj gate_up_proj w1 wi_0 Wi",
    "mlp_ups": "up_proj gate_up_proj w3 wi_1 Wi wi c_fc fc1 fc_in lin1 dense_h_to_4h intermediate.dense",
    "mlp_downs": "down_proj w2 wo Wo c_proj fc2 fc_out lin2 dense_4h_to_h output.dense",
}

_OUTSIDE: Mapping[str, str] = {
    "heads": "lm_head embed_out output_projection proj_out score classifier qa_outputs decoder",
    "embeddings": "embed_tokens wte embed_in word_embeddings tok_embeddings shared",
}

PARTS = (*_ATTENTION, *_MLP, *_OUTSIDE)
"""All parts. A spec uses their names like those of a `let`."""

_PARTS_OF_NAME: Mapping[bool, Mapping[str, frozenset[str]]] = {
    in_attention: {
        name: frozenset(part for part, names in table.items() if name in names.split())
        for name in " ".join(table.values()).split()
    }
    for in_attention, table in ((True, _ATTENTION), (False, _MLP))
}


def kinds_called(name: str, sites: Iterable[Site]) -> list[str]:
    """Return the kinds of sites that are what some other family of models calls by this name."""
    means = parts_outside(name).union(*(names.get(name, ()) for names in _PARTS_OF_NAME.values()))
    kinds = list(dict.fromkeys(site.kind for site in sites if parts(site) & means))
    # `query`, `wq` and `to_q` are `q_proj`: one letter tells these apart.
    one = re.fullmatch("(?:w_?|to_)?([qkv])(?:uery|ey|alue)?(?:_proj|_lin)?", name)
    return [kind for kind in kinds if one and kind.startswith(one[1])] or kinds


def parts_outside(kind: str) -> frozenset[str]:
    """Return the parts of a module of this kind outside of blocks."""
    return frozenset(part for part, names in _OUTSIDE.items() if kind in names.split())


def parts(site: Site) -> frozenset[str]:
    """Return the parts of a site. There are several if its weight holds several maps."""
    if site.layer is None:
        return frozenset(part for kind in site.kinds for part in parts_outside(kind))
    ancestors, _, _ = site.path.rpartition(".")
    names = _PARTS_OF_NAME["att" in ancestors.lower()]
    return names.get(f"{site.parent}.{site.kind}") or names.get(site.kind) or frozenset()
