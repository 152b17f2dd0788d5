"""Specs of compositions and of references, for tests of what an adapter does with either."""

MODULES = "target gate_proj, up_proj, down_proj, q_proj, o_proj\n"
REFERENCES = {
    "of the owner's key": """
        share up    per layer             rank 4  where gate_proj, up_proj
        share down  A per layer  B is up.A  rank 4  where down_proj  init A zeros
        """,
    "of the next layer": """
        share read   per layer                             rank 4  where q_proj
        share write  A per module  B per layer + 1 is read.A  rank 4
            where o_proj and layer < layers - 1
            init A zeros
        """,
    "of one layer": """
        share s  per layer                     rank 2  where q_proj
        share t  A per 1 is s.A  B per layer  rank 2  where q_proj
        """,
    "of each other": """
        share up    A per layer    B is down.A  rank 4  where up_proj    init A zeros
        share down  A per layer    B is up.A    rank 4  where down_proj  init A normal
        """,
    "of one share": """
        share s  A per layer  B is A  core per module  rank 4  where q_proj, o_proj  via Core
        """,
    "both": """
        share s  per layer        rank 4  where gate_proj
        share t  A is s.B  B is s.A  rank 4  where down_proj
        """,
    "private tensors": """
        share s  per layer            rank 4  via Core  where q_proj
        share t  per layer  core per module is s.core  rank 4  via Core  where q_proj
        """,
    "kernels": """
        share s  per layer             rank 4  via KE(size = 4)
        share t  per layer  K_A is s.K_A  rank 4  via KE(size = 4)
        """,
    "between chains": """
        share s  per model            rank 4  via A SS then Loadings(vectors = 6) as mixed, B SS
        share t  per model  mixed is s.mixed  rank 4
            via A SS then Loadings(vectors = 6) as mixed, B SS
        """,
    "frozen tensors": """
        share s  A per model   B per module  rank 4  freeze A      where q_proj
        share t  A per module  B is s.A      rank 4  init A zeros  where o_proj
        """,
    "beside a magnitude": """
        share s  per layer              rank 4  where q_proj
        share t  A per module  B is s.A  rank 4  where o_proj  init A zeros
        magnitude per module
        """,
}

COMPOSITIONS = {
    "a transform for each place": """
        share s  per layer  core per layer  rank 4  via A KE(size = 4), B SS, between Core
        """,
    "a core after kernels": """
        share s  per layer, in  rank 4  via KE(size = 4) then Core
        """,
    "a chain": """
        share s  per model  rank 3  via A SS then Loadings(vectors = 6) as mixed, B SS
        """,
    "two chains": """
        share s  per model  rank 3
            via A SS then Mix(count_A = 2) as m, B KE(size = 8) then Loadings(vectors = 5) as l
        """,
    "cores by name": """
        share s  per in, out  by_layer per layer  by_kind per kind  rank 3
            via Core as by_layer then Core as by_kind
            init by_kind normal
        """,
    "a core and a magnitude": """
        share s  per model  rank 3  via A SS, B SS, between Core
        magnitude per module
        """,
    "a composition whose tensor is another's": """
        share s  per model  rank 3  via SS then Core  where gate_proj, up_proj
        share t  per model  core per module  A is s.A  rank 3  via SS then Core  where q_proj
        """,
}
FORMS = {**REFERENCES, **COMPOSITIONS}


def spec_of(name):
    return f"spec s\n{MODULES}{FORMS[name]}"
