"""One call for a rotary position embedding, which passes over its tensors less often."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from bishare_dsl.rewrite.leaves import call_global, global_function
from bishare_dsl.rewrite.program import RegionProgram
from bishare_dsl.rewrite.rotary import is_rotation, rotary


@dataclass(frozen=True)
class FuseRotary:
    """Before: ``call_global(module, "apply_rotary_pos_emb", q, k, cos, sin)``.
    After: ``rotary(module, "apply_rotary_pos_emb", q, k, cos, sin)``.

    Only where that function is a rotation of halves, by the operations that it calls for.
    """

    def run(self, program: RegionProgram) -> None:
        for node in program.forward.find_nodes(op="call_function", target=call_global):
            if _rotates(node):
                node.target = rotary


def _rotates(node: fx.Node) -> bool:
    module_name, name, *tensors = node.args
    function = global_function(str(module_name), str(name))
    return len(tensors) == 4 and not node.kwargs and is_rotation(function)
