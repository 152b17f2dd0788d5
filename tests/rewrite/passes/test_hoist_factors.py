"""What depends on tensors only moves to the assembly."""

from bishare_dsl.rewrite.passes import HoistFactors


def test_hoisting_again_changes_nothing(case, use, same_results):
    twice = case([(2, 4), (2, 6)], left=[use(scale=2.0)], right=[use()])
    once, again = twice.program(HoistFactors()), twice.program(HoistFactors(), HoistFactors())
    assert [len(g.nodes) for g in (once.forward, once.assembly)] == [
        len(g.nodes) for g in (again.forward, again.assembly)
    ]
    same_results(twice, HoistFactors(), HoistFactors())
