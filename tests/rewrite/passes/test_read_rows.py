"""The factors are those of the open batch."""

from bishare_dsl.rewrite.passes import HoistFactors, ReadRows


def test_the_batch_is_asked(case, use, same):
    siblings = case([(2, 4), (2, 6)], left=[use()])
    program = siblings.program(HoistFactors(), ReadRows())
    same(
        program.forward,
        """
        bishare_self = self.bishare_self
        rows_of = rows_of(bishare_self)
        getitem_2 = rows_of[0]
        getitem_3 = rows_of[1]
        left = self.left(x)
        down = down(x, getitem_2)
        up = up(left, down, getitem_3)
        right = self.right(x)
        mul = mul(up, right)
        out = self.out(mul)
        return out
        """,
    )
