"""What depends on tensors only moves to the assembly."""

from bishare_dsl.rewrite.passes import OPTIMISATIONS, HoistFactors


def test_the_assembly_makes_the_factors(case, use, same, same_results):
    window = case([(2, 4), (2, 8)], left=[use(via="SS", scale=2.0)])
    before = """
        bishare_factors = self.bishare_factors()
        getitem = bishare_factors[0]
        getitem_1 = bishare_factors[1]
        getitem_2 = getitem[..., 0:4]
        getitem_3 = getitem_1[..., 1:7]
        mul_1 = mul(getitem_3, 2.0)
        left = self.left(x)
        down = down(x, getitem_2)
        up = up(left, down, mul_1)
        right = self.right(x)
        mul = mul(up, right)
        out = self.out(mul)
        return out
        """
    after = """
        bishare_factors = self.bishare_factors()
        getitem_4 = bishare_factors[0]
        getitem_5 = bishare_factors[1]
        left = self.left(x)
        down = down(x, getitem_4)
        up = up(left, down, getitem_5)
        right = self.right(x)
        mul = mul(up, right)
        out = self.out(mul)
        return out
        """
    assembly = """
        getitem_2 = tensor_0[..., 0:4]
        getitem_3 = tensor_1[..., 1:7]
        mul_1 = mul(getitem_3, 2.0)
        return getitem_2, mul_1
        """
    same(window.program().forward, before)
    program = window.program(HoistFactors())
    same(program.forward, after)
    same(program.assembly, assembly)
    same_results(window, HoistFactors())


def test_hoisting_again_changes_nothing(case, use, same_results):
    twice = case([(2, 4), (2, 6)], left=[use(scale=2.0)], right=[use()])
    once, again = twice.program(HoistFactors()), twice.program(HoistFactors(), HoistFactors())
    assert [len(g.nodes) for g in (once.forward, once.assembly)] == [
        len(g.nodes) for g in (again.forward, again.assembly)
    ]
    same_results(twice, HoistFactors(), HoistFactors())


def test_what_is_left_of_three_terms_on_two_siblings(case, use, same, same_results):
    shapes = [(2, 4), (2, 6), (2, 4), (2, 6), (3, 4), (3, 6), (1, 5), (1, 8)]
    layer, model = use((4, 5), rank=3), use((6, 7), rank=1, via="SS")
    paper = case(shapes, left=[use((0, 1)), layer, model], right=[use((2, 3)), layer, model])
    assert len(paper.program().forward.nodes) == 31
    program = paper.program(*OPTIMISATIONS)
    same(
        program.forward,
        """
        bishare_factors = self.bishare_factors(x)
        getitem_14 = bishare_factors[0]
        getitem_15 = bishare_factors[1]
        getitem_16 = bishare_factors[2]
        left_1 = self.left
        right_1 = self.right
        island = island(x, x, getitem_14, left_1, right_1, 0, 6, 2, 6, getitem_15, getitem_16)
        getitem_12 = island[0]
        getitem_13 = island[1]
        mul = mul(getitem_12, getitem_13)
        out = self.out(mul)
        return out
        """,
    )
    same_results(paper, *OPTIMISATIONS)
