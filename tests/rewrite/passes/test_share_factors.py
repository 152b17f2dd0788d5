"""Equal factors are made once, and equal products too."""

from dataclasses import replace

from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.passes import ShareFactors
from bishare_dsl.transforms import Transform
from tests.rewrite.passes.cases import Case, same_results, use


def test_what_differs_stays_apart():
    # Another tensor, another window, another scale, another dropped input: two downs each.
    for left, right in [
        (use((0, 1)), use((2, 1))),
        (use((3, 1), via="SS"), use((3, 1), via="SS", slice="trailing")),
        (use(), use(dropout=1e-9)),
    ]:
        two = Case([(2, 4), (2, 6), (2, 4), (2, 5)], left=[left], right=[right, use((2, 1))])
        program = two.program(ShareFactors())
        downs = [node for node in program.forward.nodes if node.name.startswith("down")]
        assert len(downs) == len({node.args for node in downs}) >= 2
    scales = Case([(2, 4), (2, 6)], left=[use(scale=2.0)], right=[use(scale=3.0)])
    same_results(scales, ShareFactors())
    ups = [n for n in scales.program(ShareFactors()).forward.nodes if n.target is ops.up]
    assert [up.args[3] for up in ups] == [2.0, 3.0]


class Rolled(Transform):
    """Says by keyword what differs."""

    name = "Rolled"
    by: int

    def factors(self, tensors, rank, width):
        return tensors["A"].roll(shifts=self.by, dims=1), tensors["B"]


def test_keywords_make_a_difference():
    left, right = (replace(use(), transform=Rolled(by=by)) for by in (1, 2))
    same_results(Case([(2, 4), (2, 6)], left=[left], right=[right]), ShareFactors())
