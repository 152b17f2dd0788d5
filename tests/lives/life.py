"""An adapted model's life, as a state machine: whatever is done with it, it computes what the dense reference does.

What it should be is kept beside it: the base, and of each adapter its plan and the values of its tensors.
"""

import copy
import io
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from hypothesis import reject
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor
from transformers import PreTrainedModel

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import BishareError, BishareWarning
from bishare_dsl.loading import read_fitting
from bishare_dsl.peft import as_peft_model
from bishare_dsl.peft.method import install
from bishare_dsl.plan import Plan
from bishare_dsl.plan.together import plan_of_shares, share_names
from tests.lives.drawn import Base, bases, batches, specs
from tests.support.checks import randomize
from tests.support.references import reference_model

# How far values may be apart, relative to the largest: the reference has other orders of the same sums.
CLOSE = {torch.float32: 3e-4, torch.float64: 3e-6}
MERGED = 2e-3
GRADIENTS = 2e-3
# What these give is of each image with each text, and so of no one row.
PAIRS = ("clip", "siglip")
FIRST = "default"
# The base is quantised, or what is added is not linear: nothing can be merged.
NO_MATRIX = ("BS622", "BS633")

# What a folder of a type may lose of a tensor, relative to its largest number.
LOST = {"bfloat16": 2**-8}


@dataclass
class Known:
    """What an adapter should be."""

    plan: Plan
    values: dict[str, Tensor]
    trains: bool = True
    expected: Tensor | None = None
    rounded: bool = False
    """Whether it was loaded from a rounded folder: PEFT rounds it again."""

    def holds(self, values):
        self.values = {name: value.detach().clone() for name, value in values.items()}
        self.expected = None


class Life(RuleBasedStateMachine):
    """See the module."""

    @initialize(data=st.data(), seed=st.integers(0, 3))
    def adapt(self, data, seed):
        drawn = data.draw(bases(), "base")
        self.drawn, self.base, self.family = drawn, drawn.model, drawn.family
        self.inputs = data.draw(batches(self.base), "inputs")
        self.dtype = torch.float32
        self.resized = 0
        self.begin(data, seed)

    def begin(self, data, seed):
        """Adapt a copy of the base, and give the adapter values with which it does something."""
        spec = data.draw(specs(self.drawn.architecture), "spec")
        self.model = copy.deepcopy(self.base)
        with refusal():
            compile_spec(spec, self.model, seed=seed)
        if not hasattr(self.model, "bishare"):
            reject()
        self.known = {FIRST: Known(self.model.bishare.plan, {})}
        self.active, self.merged = FIRST, False
        self.fill(seed, data.draw(st.booleans(), "frozen too"))

    # What is expected ------------------------------------------------------------------------------

    @property
    def handle(self):
        return self.model.bishare

    @property
    def now(self):
        return self.known[self.active]

    def expected(self, name):
        """Return the logits that an adapter should give, or the base."""
        if name is None:
            # Torch takes other kernels for weights that are trained: the base is frozen, as under an adapter.
            return run(copy.deepcopy(self.base).requires_grad_(False), self.inputs, self.dtype)
        known = self.known[name]
        if known.expected is None:
            known.expected = run(self.dense(known), self.inputs, self.dtype)
        return known.expected

    def dense(self, known, base=None):
        return reference_model(self.base if base is None else base, known.plan, known.values)

    def plans(self):
        return [known.plan for known in self.known.values()]

    def changed(self):
        for known in self.known.values():
            known.expected = None

    def check(self, found, name, what, rows=slice(None)):
        """Check that logits are an adapter's, unless the model itself does not know them so well."""
        expected = self.expected(name)[rows]
        assert found.shape == expected.shape, (what, found.shape, expected.shape)
        tolerance = MERGED if self.merged else CLOSE[self.dtype]
        off = apart(found, expected)
        if off <= tolerance or self.unstable(name, tolerance, rows):
            return
        raise AssertionError(
            f"{what}: off by {off:.2e} of the largest value ({name} of {self.family})"
        )

    def unstable(self, name, tolerance, rows=slice(None)):
        """Tell whether rounding alone moves what is expected that far, as it does where a router is undecided."""
        for seed in range(4):
            base = copy.deepcopy(self.base)
            random = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for p in base.parameters():
                    if p.is_floating_point():
                        p.mul_(1 + 3e-6 * torch.randn(p.shape, generator=random).to(p))
            model = base if name is None else self.dense(self.known[name], base)
            moved = run(model, self.inputs, self.dtype)[rows]
            if apart(moved, self.expected(name)[rows]) > tolerance / 4:
                return True
        return False

    @invariant()
    def computes_what_the_reference_does(self):
        if hasattr(self, "known"):
            self.check(run(self.model, self.inputs, self.dtype), self.active, "logits")

    # What is done ----------------------------------------------------------------------------------

    @rule(data=st.data())
    def read_others(self, data):
        self.inputs = data.draw(batches(self.base), "inputs")
        self.changed()

    @precondition(lambda self: not self.merged)
    @rule(seed=st.integers(0, 9), frozen=st.booleans())
    def fill(self, seed, frozen):
        """Write other values into the parameters, as an optimizer does."""
        self.now.holds(randomize(self.model, seed, frozen=frozen))

    @precondition(lambda self: not self.merged and self.now.trains and self.dtype == torch.float32)
    @rule(mode=st.sampled_from(["plain", "checkpointing", "reentrant", "eval"]))
    def train_a_step(self, mode):
        leaves = {
            name: value.clone().requires_grad_(self.now.plan.tensor[name].trainable)
            for name, value in self.now.values.items()
        }
        # Without checkpoints: of the older kind leave out what stands before the first gradient of an input.
        how = "eval" if mode == "eval" else "plain"
        with training(reference_model(self.base, self.now.plan, leaves), how) as dense:
            wanted = self.gradients(dense, leaves)
        with training(self.model, mode):
            gradients = self.gradients(self.model, self.handle.tensors())
        scale = max((float(g.abs().max()) for g in wanted.values()), default=0.0)
        for name, gradient in gradients.items():
            off = float((gradient - wanted[name]).abs().max()) / max(scale, 1e-9)
            if off > GRADIENTS and not self.unstable(self.active, CLOSE[self.dtype]):
                raise AssertionError(f"the gradient of {name} is off by {off:.2e} ({self.family})")
        with torch.no_grad():
            for name, tensor in self.handle.tensors().items():
                if name in gradients:
                    tensor.sub_(gradients[name] * (0.1 / max(scale, 1e-9)))
        self.now.holds(self.handle.tensors())

    def gradients(self, model, tensors):
        """Return the gradient of each tensor that trains."""
        logits = outputs(model, self.inputs, self.dtype)
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        trained = {n: t for n, t in tensors.items() if self.now.plan.tensor[n].trainable}
        loss = (logits * weights.to(logits)).sum()
        for tensor in trained.values():
            tensor.grad = None
        loss.backward()
        found = {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in trained.items()}
        for tensor in trained.values():
            tensor.grad = None
        return found

    @rule(how=st.sampled_from(["gradients", "inference mode", "twice"]))
    def look(self, how):
        if how == "inference mode":
            with torch.inference_mode():
                found = outputs(self.model, self.inputs, self.dtype)
        else:
            found = outputs(self.model, self.inputs, self.dtype)
            if how == "twice":
                found = outputs(self.model, self.inputs, self.dtype)
        self.check(found.detach().clone(), self.active, f"logits ({how})")

    @rule()
    def disable(self):
        with self.handle.disable_adapter():
            found = run(self.model, self.inputs, self.dtype)
        assert torch.equal(found, self.expected(None)), f"disabled is not the base ({self.family})"

    @precondition(lambda self: not self.merged)
    @rule(data=st.data())
    def disable_shares(self, data):
        """Run without some shares, as if the plan had only the others; all of them off are the base."""
        names = share_names(self.now.plan)
        off = data.draw(st.sets(st.sampled_from(names), min_size=1), "shares")
        whole = run(self.model, self.inputs, self.dtype)
        with self.handle.disable_share(*off):
            found = run(self.model, self.inputs, self.dtype)
        assert torch.equal(run(self.model, self.inputs, self.dtype), whole), self.family
        if off == {*names}:
            assert torch.equal(found, self.expected(None)), f"all off ({self.family})"
        self.known["part"] = Known(plan_of_shares(self.now.plan, {*names} - off), self.now.values)
        try:
            self.check(found, "part", f"logits without {sorted(off)}")
        finally:
            del self.known["part"]

    @precondition(lambda self: not self.merged)
    @rule()
    def merge(self):
        with refusal(*NO_MATRIX):
            self.handle.merge()
            self.merged = True

    @precondition(lambda self: self.merged)
    @rule()
    def unmerge(self):
        self.handle.unmerge()
        self.merged = False

    @rule(
        frozen=st.sampled_from(["seed", "tensors"]),
        form=st.sampled_from([None, *LOST]),
        beside=st.booleans(),
        by_peft=st.booleans(),
    )
    def save_and_load(self, frozen, form, beside, by_peft):
        """Go on with what was loaded, of any type: alone, or beside the adapters that there are."""
        form = None if may_tie(self.now.plan) else form
        with tempfile.TemporaryDirectory() as folder:
            if by_peft and not self.now.rounded:
                form, model = None, as_peft_model(copy.deepcopy(self.model))
                model.save_pretrained(folder, selected_adapters=[self.active])
                place = folder if self.active == FIRST else f"{folder}/{self.active}"
            else:
                self.handle.save_pretrained(place := folder, frozen=frozen, dtype=form)
            known = copy.copy(self.now)
            if beside:
                name = self.free_name()
                with refusal("BS643"):
                    install(self.model, read_fitting(place, self.model)[0], name=name)
                if name not in self.handle.adapters:
                    return
                self.handle.set_adapter(name)
                self.known[name], self.active = known, name
            else:
                model = copy.deepcopy(self.base)
                load_adapter(place, model)
                self.model, self.known, self.active = model, {FIRST: known}, FIRST
                self.merged = False
        self.model.eval()
        known.trains = all(
            tensor.requires_grad
            for name, tensor in self.handle.tensors().items()
            if known.plan.tensor[name].trainable
        )
        if form is not None:
            for name, tensor in self.handle.tensors().items():
                wanted = known.values[name]
                most = max(wanted.abs().max(), 1e-3)
                assert (tensor.detach() - wanted).abs().max() <= LOST[form] * most, name
            known.holds(self.handle.tensors())
            known.rounded = True

    @precondition(lambda self: self.dtype == torch.float32)
    @rule(how=st.sampled_from(["copy", "pickle"]))
    def copy_it(self, how):
        """Go on with a copy, and change the one that it was copied from."""
        before = self.model
        if how == "copy":
            self.model = copy.deepcopy(before)
        else:
            try:
                self.model = pickled(before)
            except AttributeError as error:
                # transformers leaves hooks behind that it cannot pickle.
                assert "local object" in str(error)  # noqa: PT017 - what it says is all there is of it
                return
        if not self.merged:
            randomize(before, 17)

    @precondition(lambda self: not self.drawn.quantised)
    @rule(dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    def convert(self, dtype):
        """Go on in another type; from a shorter one back at once, with what is left."""
        if any(site.expert is not None for site in self.drawn.architecture.sites):
            return  # The fused experts of transformers know no float64, and no bfloat16 of such widths.
        if dtype == torch.bfloat16 and (self.merged or any(map(may_tie, self.plans()))):
            return  # The sum would be rounded, which no one can undo.
        types = [dtype, torch.float32] if dtype == torch.bfloat16 else [dtype]
        for self.dtype in types:
            self.model.to(self.dtype)
            self.base.to(self.dtype)
            for known in self.known.values():
                known.values = {
                    name: value.to(self.dtype) if value.is_floating_point() else value
                    for name, value in known.values.items()
                }
            if self.dtype == torch.bfloat16:
                assert torch.isfinite(run(self.model, self.inputs, self.dtype)).all()
        self.changed()

    @precondition(lambda self: self.dtype == torch.float32 and self.resized < 2)
    @rule(more=st.integers(1, 3))
    def resize(self, more):
        """Give the model more tokens, unless an adapter has something at the tables of them."""
        if not self.base.can_generate():
            return
        at_tables = any(map(self.drawn.at_tables, self.plans()))
        size = self.base.get_input_embeddings().weight.shape[0] + more
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            with refusal("BS698" if at_tables else "none"):
                self.model.resize_token_embeddings(size, mean_resizing=False)
                assert not at_tables
            if at_tables:
                return
            torch.manual_seed(0)
            self.base.resize_token_embeddings(size, mean_resizing=False)
        self.drawn = Base(self.family, self.base)
        self.resized += 1
        self.changed()

    @rule()
    def generate(self):
        """Write some tokens, with a cache of keys and values and without."""
        if not self.base.can_generate() or {*self.inputs} - {"input_ids", "attention_mask"}:
            return
        written = [
            self.model.generate(
                **self.inputs,
                max_new_tokens=3,
                do_sample=False,
                pad_token_id=0,
                use_cache=cached,
                output_logits=True,
                return_dict_in_generate=True,
            )
            for cached in (True, False)
        ]
        pairs = zip(written[0].logits, written[1].logits, strict=True)
        # After tokens that differ, as where two are as likely, nothing is comparable.
        for with_cache, without in pairs:
            off = apart(with_cache, without)
            if off > CLOSE[self.dtype] and not self.unstable(self.active, CLOSE[self.dtype]):
                raise AssertionError(f"a cache changes logits by {off:.2e} ({self.family})")
            if not torch.equal(with_cache.argmax(-1), without.argmax(-1)):
                break

    @precondition(lambda self: not self.merged and self.dtype == torch.float32)
    @rule()
    def export(self):
        """Write a plain LoRA, and read it again."""
        with (
            tempfile.TemporaryDirectory() as folder,
            refusal("BS646", "BS656", "BS675", "BS692", *NO_MATRIX),
        ):
            self.handle.export(f"{folder}/lora")
            other = copy.deepcopy(self.base)
            load_adapter(f"{folder}/lora", other)
            found = run(other.eval(), self.inputs, self.dtype)
            self.check(found, self.active, "logits of what was exported")

    # Several adapters ------------------------------------------------------------------------------

    def free_name(self):
        return next(name for i in range(99) if (name := f"n{i}") not in self.known)

    @precondition(lambda self: not self.merged and len(self.known) < 4)
    @rule(data=st.data(), seed=st.integers(0, 3))
    def add(self, data, seed):
        spec = data.draw(specs(self.drawn.architecture), "spec")
        name = self.free_name()
        with refusal("BS403", "BS304"):  # Towers may differ in their layers.
            install(self.model, make_plan(spec, self.model), seed, name)
        if name not in self.handle.adapters:
            return
        self.handle.set_adapter(name)
        self.active = name
        self.known[name] = Known(self.handle.plan, {})
        self.fill(seed, data.draw(st.booleans(), "frozen too"))

    @rule(data=st.data())
    def switch(self, data):
        name = data.draw(st.sampled_from(sorted(self.known)), "name")
        with refusal("BS643"):
            self.handle.set_adapter(name)
            self.active = name

    @precondition(lambda self: len(self.known) > 1)
    @rule(data=st.data())
    def delete(self, data):
        name = data.draw(st.sampled_from(sorted(self.known)), "name")
        with refusal("BS643"):
            self.handle.delete_adapter(name)
        for gone in {*self.known} - {*self.handle.adapters}:
            del self.known[gone]
        [self.active] = self.handle.active

    @precondition(lambda self: not self.merged)
    @rule(data=st.data())
    def mix(self, data):
        """Run rows of several adapters in one batch."""
        rows = len(self.expected(None))
        choices = st.sampled_from([*sorted(self.known), None])
        names = data.draw(st.lists(choices, min_size=rows, max_size=rows), "names")
        with refusal("BS6"), torch.no_grad():
            with self.handle.rows(names):
                found = logits_of(self.model(**cast(self.inputs, self.dtype)))
            for row, name in enumerate(names if self.family not in PAIRS else ()):
                self.check(found[row], name, f"row {row} of a mixed batch {names}", row)

    # Another model that is the same ----------------------------------------------------------------

    @rule(data=st.data(), seed=st.integers(0, 3), merged=st.booleans())
    def unload(self, data, seed, merged):
        """Take the adapter out, or merge for good; then adapt the base anew."""
        if merged:
            model = self.model
            with refusal(*NO_MATRIX):
                model.bishare.merge_and_unload()
            if hasattr(model, "bishare"):
                return
            self.merged = True
            found = run(model, self.inputs, self.dtype)
            self.check(found, self.active, "logits of what was merged for good")
        else:
            model = self.handle.unload()
            found = run(model, self.inputs, self.dtype)
            assert torch.equal(found, run(self.base, self.inputs, self.dtype)), self.family
            trains = [p.requires_grad for p in model.parameters()]
            assert trains == [p.requires_grad for p in self.base.parameters()]
        assert [type(m) for m in model.modules()] == [type(m) for m in self.base.modules()]
        self.begin(data, seed)


@contextmanager
def refusal(*codes):
    """Let something be refused, with codes that begin so; what is refused has changed nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BishareWarning)
            yield
    except BishareError as error:
        for problem in error.problems:
            known = any(str(problem.code).startswith(code) for code in codes)
            if codes and problem.severity == "error" and not known:
                raise


def loses_gradients(model):
    """Tell whether a tower gets no gradient under reentrant checkpoints, whatever adapts it, as torch warns.

    Their inputs must have gradients; transformers sees to that where it knows what embeds them.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            try:
                module.get_input_embeddings()
            except NotImplementedError:
                return True
    return False


@contextmanager
def training(model, mode):
    """Let a model train in a block: as it is, with checkpoints of one kind or the other, or in eval mode."""
    model.train(mode != "eval")
    checkpoints = mode in ("checkpointing", "reentrant") and model.supports_gradient_checkpointing
    mode = "checkpointing" if mode == "reentrant" and loses_gradients(model) else mode
    if checkpoints:
        model.gradient_checkpointing_enable({"use_reentrant": mode == "reentrant"})
    try:
        yield model
    finally:
        if checkpoints:
            model.gradient_checkpointing_disable()
            if mode == "reentrant":
                model.disable_input_require_grads()
        model.eval()


def may_tie(plan):
    """Tell whether a plan has logits that may be equal once they are rounded: then either may be the larger."""
    return any(term.transform == "VectorBank" for term in plan.terms)


def pickled(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def cast(inputs, dtype):
    return {n: v.to(dtype) if v.is_floating_point() else v for n, v in inputs.items()}


def logits_of(output):
    # A CLIP compares images with texts.
    return output["logits" if "logits" in output else "logits_per_image"]


def outputs(model, inputs, dtype):
    return logits_of(model(**cast(inputs, dtype)))


def run(model, inputs, dtype):
    with torch.no_grad():
        return outputs(model, inputs, dtype)


def apart(found, expected):
    """Return how far values are apart, of the largest that is expected; infinite where one is no number."""
    gap = (found.double() - expected.double()).abs().max()
    size = max(float(expected.double().abs().max()), 1e-3)
    return float(gap) / size if torch.isfinite(gap) else float("inf")
