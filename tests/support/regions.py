"""A Hypothesis strategy for regions: randomly wired linear layers, with an adapter and passes.

@given(regions())
def test_my_pass(drawn):
    check_region(drawn)
"""

import copy
from dataclasses import dataclass
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.plan import build_plan
from bishare_dsl.rewrite.adapt import check_free, compile_plan, insert_first
from bishare_dsl.rewrite.passes import OPTIMISATIONS
from bishare_dsl.rewrite.region import Pass
from bishare_dsl.spec import Spec
from bishare_dsl.testing.fitting_specs import fitting_specs
from tests.support.checks import _close, _gradients, _random, _same
from tests.support.references import reference_model


def adapt(model, plan, tensors, optimisations=OPTIMISATIONS):
    """Rewrite a model for a plan and insert its tensors, without a handle; return the notes."""
    check_free(model)
    code = compile_plan(model, plan, optimisations=optimisations)
    insert_first(model, code, tensors)
    return code.notes


class Region(nn.Module):
    """A module whose forward runs steps, each of which creates one value.

    Args:
        linears: the name, both widths and whether there is a bias, for each layer.
        steps: the steps, which read values by number; the first value is the input.
        returned: the numbers of the returned values.
        tied: pairs of another name for a layer and its first name.
    """

    def __init__(self, linears, steps, returned, tied=()):
        super().__init__()
        for name, d_in, d_out, bias in linears:
            self.add_module(name, nn.Linear(d_in, d_out, bias))
        for name, other in tied:
            self.add_module(name, self.get_submodule(other))
        self.act, self.act_in_place = nn.SiLU(), nn.ReLU(inplace=True)
        self.steps, self.returned = tuple(steps), tuple(returned)

    def forward(self, x):
        values = [x]
        for what, name, (first, *others) in self.steps:
            y = values[first]
            match what:
                case "call":
                    y = getattr(self, name)(y)
                case "tanh":
                    y = torch.tanh(y)
                case "add":
                    y = y + values[others[0]]
                case "mul":
                    y = y * values[others[0]]
                case "+=":
                    y += values[others[0]]
                case "tanh_":
                    y = y.tanh_()
                case "relu_":
                    y = F.relu(y, inplace=True)
                case "halve":
                    y = halve(y)
                case "rest":
                    y = y[..., 1:]
                case "mode":
                    y = y * (0.5 if self.training else -1.0)
                case "branch":
                    y = torch.tanh(y) if self.training else y - 1.0
            values.append(y)
        return tuple(values[i] for i in self.returned)


def halve(x):
    """Write to the argument, which a trace does not see."""
    return x.mul_(0.5)


class Layers(nn.Module):
    """Regions with the same wiring and input, with separate weights except for one shared layer."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return [value for layer in self.layers for value in layer(x.clone())]


@dataclass(frozen=True)
class DrawnRegion:
    """A model of regions, and the settings of its test.

    Attributes:
        model: an unadapted float64 model.
        width: the width of its input.
        spec: a spec that fits it, with dropout.
        optimisations: the passes that run after `ExpandTerms`.
        training: whether it is in training mode.
        traced: whether its regions can be fully traced, and no layer has two names.
    """

    model: Layers
    width: int
    spec: Spec
    optimisations: tuple[Pass, ...]
    training: bool
    traced: bool = True


class _Wiring:
    """A region under construction: the widths of its values and their readers."""

    def __init__(self, draw, linears):
        self.draw, self.wanted = draw, linears
        self.widths = [draw(st.integers(2, 6))]
        self.linears = []
        self.steps = []
        self.tied = []
        # Few kinds per region: most regions with all kinds could not be traced or trained.
        rare = [
            (),
            ("in place", "in place"),
            ("in place", "in place", "mode"),
            ("branch", "tied", "tied", "tied"),
        ]
        self.rare = draw(st.sampled_from(rare))

    def one(self, *values):
        return self.draw(st.sampled_from(values))

    def step(self, what, name, *read, width=None):
        self.steps.append((what, name, read))
        self.widths.append(self.widths[read[0]] if width is None else width)
        return len(self.widths) - 1

    def linear(self, x, width=None):
        """Add a new layer on a value, with another value's width or a new width."""
        if width is None:
            width = self.draw(st.sampled_from(self.widths) | st.integers(2, 7))
        name = "abcdefgh"[len(self.linears)]
        self.linears.append((name, self.widths[x], width, self.draw(st.booleans())))
        return self.step("call", name, x, width=width)

    def in_place(self):
        """Write in place, mostly to values that nothing has read, as autograd requires."""
        everything = range(len(self.widths))
        unread = {*everything} - {0, *(i for _, _, read in self.steps for i in read)}
        x = self.one(*(3 * sorted(unread)), *everything)
        what = self.draw(st.sampled_from(["relu_", "tanh_", "halve", "call", "+="]))
        others = [i for i in everything if self.widths[i] == self.widths[x]] if what == "+=" else []
        self.step(what, "act_in_place", x, *(self.one(*others) for _ in others[:1]))

    def grow(self):
        """Add a motif: most are one step, a gated product is five."""
        everything = range(len(self.widths))
        x = self.one(*reversed(everything))
        alike = [i for i in everything if self.widths[i] == self.widths[x]]
        again = [linear for linear in self.linears if linear[1] == self.widths[x]]
        left = self.wanted - len(self.linears)
        motifs = ["linear", "linear", "act", "add", "mul"]
        motifs += ["again"] * bool(again) + ["gated", "residual"] * (left >= 3)
        motifs += ["rest"] * (self.widths[x] > 2)
        motifs += [kind for kind in self.rare if again or kind != "tied"]
        match self.draw(st.sampled_from(motifs)):
            case "linear":
                self.linear(x)
            case "again" | "tied" as how:
                name, _, width, _ = self.draw(st.sampled_from(again))
                if how == "tied":
                    self.tied.append((f"tied_{len(self.tied)}", name))
                    name = self.tied[-1][0]
                self.step("call", name, x, width=width)
            case "act":
                self.step("call", "act", x)
            case "mode" | "branch" as what:
                self.step(what, "", x)
            case "in place":
                self.in_place()
            case "rest":
                self.step("rest", "", x, width=self.widths[x] - 1)
            case "gated":
                pair = [(first := self.linear(x)), self.linear(x, self.widths[first])]
                gate = self.one(0, 1)
                pair[gate] = self.step("call", "act", pair[gate])
                self.linear(self.step("mul", "", *pair))
            case "residual":
                self.step("add", "", x, self.linear(self.linear(x), self.widths[x]))
            case "mul":  # A factor of at most one keeps values bounded.
                self.step("mul", "", self.step("tanh", "", x), self.one(*alike))
            case _:
                self.step("add", "", x, self.one(*alike))

    def returned(self):
        """Return all unread values, and perhaps one that is read."""
        used = {i for _, _, read in self.steps for i in read}
        ends = [i for i in range(len(self.widths)) if i not in used]
        return ends + self.draw(st.lists(st.sampled_from(range(len(self.widths))), max_size=1))


@st.composite
def regions(draw):
    """Generate randomly wired regions of 2 to 8 linear layers, with a spec and some of the passes.

    They have chains, branches, residuals, activations, gated products, sums, values both returned and used,
    and repeated layers under one or two names. Biases and widths vary. Some have in-place operations, also
    on views, or depend on the mode. A model has one or two regions of a kind, which may share a layer.
    """
    wiring = _Wiring(draw, draw(st.integers(2, 8)))
    while len(wiring.linears) < wiring.wanted:
        wiring.grow()
    returned = wiring.returned()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 3)))
        model = Layers(
            *(
                Region(wiring.linears, wiring.steps, returned, wiring.tied)
                for _ in range(draw(st.sampled_from([1, 1, 2])))
            )
        ).double()
    if shared := len(model.layers) > 1 and draw(st.sampled_from([False, False, True])):
        model.layers[1].a = model.layers[0].a
    spec = draw(fitting_specs(inspect_model(model)))
    dropouts = st.sampled_from([0, 0, 0.25, 0.5])
    shares = tuple(
        share  # A magnitude is a statement without dropout.
        if share.is_magnitude
        else share.model_copy(update={"dropout": draw(dropouts)})
        for share in spec.shares
    )
    passes = draw(st.just(OPTIMISATIONS) | st.sets(st.sampled_from(OPTIMISATIONS)))
    return DrawnRegion(
        model,
        wiring.widths[0],
        spec.model_copy(update={"shares": shares}),
        tuple(step for step in OPTIMISATIONS if step in passes),
        draw(st.booleans()),
        not (wiring.tied or shared or any(what == "branch" for what, _, _ in wiring.steps)),
    )


def check_region(drawn, seed=0):
    """Check that the outputs of a generated region, and every gradient, equal the dense reference's.

    Gradients are compared if the base can be trained, which in-place operations may prevent. Dropout is
    replaced by a mask that depends only on positions.

    Raises:
        AssertionError: a value differs, or a traceable region was not traced.
    """
    plan, _ = build_plan(drawn.spec, inspect_model(drawn.model))
    random, dtype = _random(seed), torch.float64
    tensors = {
        t.name: torch.randn(t.shape, generator=random, dtype=dtype) * t.shape[0] ** -0.5 * 0.3
        for t in plan.tensors
    }
    leaves = {t.name: tensors[t.name].clone().requires_grad_(t.trainable) for t in plan.tensors}
    x = torch.randn((2, 3, drawn.width), generator=random, dtype=dtype)
    drop = _masked if drawn.training else None
    dense = reference_model(drawn.model, plan, leaves, drop).train(drawn.training)
    adapted = copy.deepcopy(drawn.model).train(drawn.training)
    trains = can_train(adapted, x)
    with torch.no_grad():
        weights = [torch.randn(y.shape, generator=random, dtype=dtype) for y in adapted(x)]

    def run(model, parameters):
        if not trains:
            with torch.no_grad():
                return model(x), []
        read = x.clone().requires_grad_()
        ys = model(read)
        loss = torch.stack([(y * w).sum() for y, w in zip(ys, weights, strict=True)]).sum()
        trained = [parameters[t.name] for t in plan.tensors if t.trainable]
        return ys, _gradients(loss, [read, *trained])

    def stand_in(x, p, training):
        return _masked(x, p) if training else x

    with patch.object(torch.nn.functional, "dropout", stand_in):
        notes = adapt(adapted, plan, tensors, optimisations=drawn.optimisations)
        _same(notes if drawn.traced else (), (), "notes")
        parameters = adapted.get_submodule("bishare").parts.tensors()
        found, gradients = run(adapted, parameters)
        with torch.no_grad():
            again = [adapted(x) for _ in range(2)]
    expected, references = run(dense, leaves)
    for i, y in enumerate(expected):
        for ys in (found, *again):
            _close(ys[i], y, dtype, f"value {i}")
    if not trains:
        return
    names = ("the input", *(t.name for t in plan.tensors if t.trainable))
    scale = max(float(gradient.abs().max()) for gradient in references)
    for name, gradient, reference in zip(names, gradients, references, strict=True):
        _close(gradient, reference, dtype, f"the gradient of {name}", scale=scale)


def _masked(x, p):
    """Return ``x`` with a fraction of about ``p`` of its values dropped, equal for all
    inputs of a shape.
    """
    kept = torch.rand(x.shape, generator=_random(x[0].numel())) >= p
    return x * kept.to(x) / (1 - p)


def can_train(model, x):
    """Return whether autograd can compute the gradients of all a model's parameters."""
    try:
        ys = copy.deepcopy(model)(x.clone().requires_grad_())
        torch.stack([y.sum() for y in ys]).sum().backward()
    except RuntimeError:
        return False
    return True
