"""The factors' module is told what the region reads."""

from bishare_dsl.rewrite.passes import CastFactors, HoistFactors


def test_the_call_has_the_region_s_input(case, use, same, same_results):
    one = case([(2, 4), (2, 6)], left=[use()])
    for steps, argument in (((), ""), ((CastFactors(),), "x")):
        same(
            one.program(HoistFactors(), *steps).forward,
            f"""
            bishare_factors = self.bishare_factors({argument})
            getitem_2 = bishare_factors[0]
            getitem_3 = bishare_factors[1]
            left = self.left(x)
            down = down(x, getitem_2)
            up = up(left, down, getitem_3)
            right = self.right(x)
            mul = mul(up, right)
            out = self.out(mul)
            return out
            """,
        )
    same_results(one, HoistFactors(), CastFactors())
