"""A region of two siblings, its program after some passes, as text and as a module that runs."""

import torch
from torch import nn

from bishare_dsl.rewrite.capture import capture_region
from bishare_dsl.rewrite.effective_factors import EffectiveFactors
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.passes import ExpandTerms, run_passes
from bishare_dsl.rewrite.region import FACTORS, RegionGraphs, Target, TermUse
from bishare_dsl.rewrite.rewritten import GraphCode, RegionCode, set_code
from bishare_dsl.transforms import Width, transform_kind


class Siblings(nn.Module):
    """`left` and `right` read one input; `out` reads what they made."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(4, 6)
        self.right = nn.Linear(4, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, x):
        return self.out(self.left(x) * self.right(x))


class Gated(Siblings):
    """A gated MLP, whose gate is `right`."""

    def __init__(self):
        super().__init__()
        self.act = nn.SiLU()

    def forward(self, x):
        return self.out(self.left(x) * self.act(self.right(x)))


def use(slots=(0, 1), rank=2, scale=1.0, dropout=0.0, via="Identity", **options):
    """A term that reads the tensors in these slots as A, B and, with gates or kernels, the rest."""
    transform = transform_kind(via).model_validate(options)
    roles = ("A", "B", *transform.own(rank, Width(4, 6)))
    rows = transform.rows(rank, Width(4, 6))
    return TermUse(transform, rank, rows, scale, dropout, tuple(zip(roles, slots, strict=True)))


class Case:
    """Terms of some of the region's linears, over tensors of these shapes."""

    def __init__(self, shapes, region=Siblings, **terms):
        self.region = region
        module = region()
        self.targets = tuple(
            Target(name, Width(linear.in_features, linear.out_features), tuple(terms[name]))
            for name, linear in module.named_children()
            if name in terms
        )
        self.shapes = tuple(shapes)
        self.linears = [n for n, child in module.named_children() if isinstance(child, nn.Linear)]

    def program(self, *optimisations) -> RegionGraphs:
        graph = capture_region(self.region(), [target.path for target in self.targets])
        program = RegionGraphs.start(graph, len(self.shapes), self.linears)
        list(run_passes(program, ExpandTerms(self.targets, self.shapes), optimisations))
        return program

    def module(self, *optimisations, seed=0, frozen=False) -> tuple[nn.Module, list[nn.Parameter]]:
        """The region with the program installed, in float64, and its tensors."""
        program = self.program(*optimisations)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self.region().double().requires_grad_(not frozen)
            tensors = [nn.Parameter(torch.randn(s, dtype=torch.double)) for s in self.shapes]
        dropout = max(use.dropout for target in self.targets for use in target.terms)
        named = {f"tensor.{i}": tensor for i, tensor in enumerate(tensors)}
        owned = OwnedTensors(named, dropout)
        forward = GraphCode.of(program.forward)
        assembly = GraphCode.of(program.assembly)
        sources = [(owned, i) for i in range(len(tensors))]
        module.add_module(FACTORS, EffectiveFactors(RegionCode(forward, assembly), sources))
        set_code(module, forward)
        return module, tensors

    def results(self, *optimisations, seed=0, frozen=False) -> list[torch.Tensor]:
        """The output on a fixed input, the output without gradients, and all gradients."""
        module, tensors = self.module(*optimisations, seed=seed, frozen=frozen)
        x = torch.linspace(-1, 1, 2 * 3 * 4, dtype=torch.double).view(2, 3, 4).requires_grad_()
        y = module(x)
        y.square().sum().backward()
        with torch.no_grad():
            kept = [module(x) for _ in range(2)]
        bases = [] if frozen else [module.left.weight.grad, module.out.bias.grad]
        assert all(tensor.grad is not None for tensor in tensors)
        return [y, *kept, x.grad, *bases, *(tensor.grad for tensor in tensors)]


def same_results(case: Case, *optimisations) -> None:
    """Check that a case computes the same with some optimisations as without any."""
    for frozen in (False, True):  # With frozen layers the fused functions run.
        expected = case.results(frozen=frozen)
        actual = case.results(*optimisations, frozen=frozen)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
