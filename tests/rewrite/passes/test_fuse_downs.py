"""All that siblings project down from one input is one product."""

from bishare_dsl.rewrite.passes import FuseDowns, ShareFactors


def test_other_inputs_are_other_islands(case, use, same_results):
    apart = case(
        [(2, 4), (2, 6), (2, 6), (2, 4)], left=[use()], right=[use(dropout=1e-9)], out=[use((2, 3))]
    )
    before, after = apart.program(), apart.program(FuseDowns())
    assert [node.name for node in before.forward.nodes] == [n.name for n in after.forward.nodes]
    same_results(apart, ShareFactors(), FuseDowns())


def test_widths_of_columns_are_those_of_the_effective_factors(case, use, same_results):
    # Rank 2 as two rows of kernel for one shared row (KE), and as two rows of gates (GT).
    ke = use((0, 1, 2, 3), rank=2, via="KE", size=3, shared_rank=1)
    gt = use((4, 5, 6, 7, 8, 9), rank=2, via="GT", size=5, gate_rank=2)
    shapes = [(1, 3), (1, 3), (2, 2), (2, 2)]
    shapes += [(2, 5), (2, 5), (2, 4), (2, 5), (2, 5), (2, 6), (3, 4), (3, 6)]
    both = case(shapes, left=[ke, use((10, 11), rank=3)], right=[gt])
    narrows = [n for n in both.program(FuseDowns()).forward.nodes if n.target == "narrow"]
    assert [node.args[1:] for node in narrows] == [(-1, 0, 2), (-1, 2, 3), (-1, 5, 2)]
    same_results(both, FuseDowns())
