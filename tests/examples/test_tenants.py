"""Four calls for many tenants: each trains as it would alone."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from bishare_dsl import compile_spec
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.folder.files import save_library
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train import TrainError
from tests.examples.conftest import EXAMPLES

sys.path.insert(0, str(EXAMPLES))

from tenants import FILE, Example, Tenants

LORA = "spec s\ntarget q_proj, v_proj, down_proj\nalpha 8\nshare a per kind rank 4\n"
LIBRARY = "spec s\ntarget q_proj, v_proj\nshare x A per kind  B per kind  core per adapter, kind  rank 3 via Core\n"
HOW = {"learning_rate": 1e-2, "weight_decay": 0.1, "max_norm": 0.5}
LOSSES = ("cross_entropy", "importance_sampling", "ppo", "mine")


def mine(logprobs, examples):
    """A loss that no example has alone."""
    return torch.stack([part.mean() for part in logprobs]).logsumexp(0)


def examples(tenant, seed):
    some, made = torch.Generator().manual_seed(seed), []
    for length in (5, 9, 7):
        tokens = torch.randint(3, 60, (length,), generator=some).tolist()
        parts = torch.randn(2, length - 1, generator=some).tolist()
        made.append(
            Example(tokens, tenant=tenant, advantages=parts[0], logprobs=[-4 + p for p in parts[1]])
        )
    return made


def values(tenants, name):
    return {n: t.detach().clone() for n, t in tenants.handle[name].tensors().items()}


def trained(names, *, apart, spec=LORA):
    """Tenants after four steps, each of two calls, whose examples are interleaved."""
    tenants = Tenants(tiny_model("llama"), spec, apart=apart)
    for name in names:
        tenants.add(name, seed=len(name))
    for step, loss in enumerate(LOSSES):
        for part in (0, 1):
            rows = [e for name in names for e in examples(name, 10 * step + part + len(name))]
            rows = rows[::2] + rows[1::2]
            tenants.forward_backward(rows, mine if loss == "mine" else loss)
        for name in names:
            tenants.step(name, **HOW)
    return tenants


@pytest.mark.parametrize("apart", [False, True])
def test_tenants_are_as_each_alone(apart, monkeypatch):
    """Up to rounding, and bit for bit where each has a forward of its own."""
    # The function of all examples depends on who is there.
    monkeypatch.setitem(globals(), "LOSSES", LOSSES[:3])
    together = trained(["acme", "no"], apart=apart)
    for name in ("acme", "no"):
        alone = values(trained([name], apart=apart), name)
        assert any(tensor.any() for tensor in alone.values())
        for key, tensor in values(together, name).items():
            if apart:
                assert torch.equal(tensor, alone[key]), key
            else:
                torch.testing.assert_close(tensor, alone[key], rtol=0, atol=1e-5)


def test_a_tenant_trains_as_by_autograd_and_torch():
    tenants = trained(["acme"], apart=False)
    model = compile_spec(LORA, tiny_model("llama"), seed=4)
    tensors = [t for t in model.bishare.tensors().values() if t.requires_grad]
    optimizer = torch.optim.AdamW(tensors, lr=1e-2, weight_decay=0.1)
    for step, loss in enumerate(LOSSES):
        for part in (0, 1):
            rows = examples("acme", 10 * step + part + 4)
            logprobs = []
            for row in rows:
                logits = model(torch.tensor([row.tokens])).logits[0, :-1].log_softmax(-1)
                logprobs.append(logits.gather(1, torch.tensor([row.tokens[1:]]).T).squeeze(1))
            total = torch.zeros(())
            for row, found in zip(rows, logprobs, strict=True):
                ratio = (found - torch.tensor(row.logprobs)).exp()
                advantages = torch.tensor(row.advantages)
                if loss == "cross_entropy":
                    total = total - found.sum()
                elif loss == "importance_sampling":
                    total = total - (ratio * advantages).sum()
                elif loss == "ppo":
                    clipped = ratio.clamp(0.8, 1.2) * advantages
                    total = total - torch.minimum(ratio * advantages, clipped).sum()
            (mine(logprobs[::2] + logprobs[1::2], rows) if loss == "mine" else total).backward()
        torch.nn.utils.clip_grad_norm_(tensors, 0.5)
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in model.bishare.tensors().items():
        torch.testing.assert_close(values(tenants, "acme")[name], tensor, rtol=0, atol=2e-5)


def test_the_result_of_a_pass_is_of_each_example_and_tenant():
    tenants = trained(["acme", "no"], apart=False)
    rows = [*examples("acme", 1), *examples("no", 2), Example([3, 4, 5])]
    found = tenants.forward_backward(rows, backward=False)
    assert [len(part) for part in found.logprobs] == [len(row.tokens) - 1 for row in rows]
    acme = -sum(float(part.sum()) for part in found.logprobs[:3])
    assert found.losses == {"acme": pytest.approx(acme), "no": found.losses["no"]}
    assert tenants.step(learning_rate=1.0) == {}  # Nobody has a gradient.
    weighted = Example([3, 4, 5], tenant="no", weights=[0.0, 2.0])
    shifted = Example([3, 4], tenant="no", targets=[4, 5], weights=[0.0, 2.0])
    one, other = (tenants.forward_backward([row]) for row in (weighted, shifted))
    assert one.losses == other.losses == {"no": pytest.approx(-2 * float(one.logprobs[0][1]))}


def test_a_gradient_that_is_no_number_is_refused_alone():
    def step(rows):
        tenants = Tenants(tiny_model("llama"), LORA, apart=True)
        tenants.add("good")
        tenants.add("bad")
        tenants.forward_backward([*examples("good", 1), *examples("bad", 2)])
        found = tenants.forward_backward(rows)
        tenants.step(**HOW)
        return tenants, found

    bad = Example([3, 4, 5], tenant="bad", weights=[float("nan"), 1.0])
    tenants, found = step([bad, *examples("good", 3)])
    assert found.refused == ("bad",)
    wanted, fine = step(examples("good", 3))
    assert fine.refused == ()
    for name in ("good", "bad"):
        for key, tensor in values(wanted, name).items():
            assert torch.equal(values(tenants, name)[key], tensor)


def test_what_tenants_share_trains_with_all_of_them_and_steps_when_no_one_is_named():
    def shared(tenants):
        return {n: t for n, t in values(tenants, "one").items() if n in tenants.shared}

    tenants = Tenants(tiny_model("llama"), LIBRARY)
    for name in ("one", "two"):
        tenants.add(name, seed=len(name))
    assert tenants.bank.common.numel() > 0
    with torch.no_grad():  # Cores begin at zero, and A and B have no gradient then.
        tenants.bank.own += 0.1
    before = shared(tenants)
    for name in ("one", "two"):
        tenants.forward_backward(examples(name, 1))
    gradient = tenants.bank.common.grad.clone()
    tenants.step("one", **HOW)
    assert all(torch.equal(tensor, before[name]) for name, tensor in shared(tenants).items())
    assert torch.equal(tenants.bank.common.grad, gradient)
    assert [*tenants.step(**HOW)] == ["two"]
    after = shared(tenants)
    assert after.keys() == before.keys()
    assert not any(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert not tenants.bank.common.grad.any()
    two = {n: t for n, t in values(tenants, "two").items() if n in tenants.shared}
    assert all(torch.equal(tensor, two[name]) for name, tensor in after.items())
    with pytest.raises(TrainError, match=r"BS750.*nothing was added"):
        tenants.forward_backward([Example([3, 4], tenant="one", weights=[float("nan")])])
    assert not tenants.bank.common.grad.any()


@pytest.fixture
def library(tmp_path):
    handle = compile_spec(LIBRARY, tiny_model("llama"), seed=7).bishare
    tensors = {n: t.detach() + 0.1 for n, t in handle.tensors().items()}
    save_library(tmp_path / "library", handle.plan, {"old": tensors}, handle.spec_text, seed=7)
    return tmp_path / "library"


def test_tenants_of_a_library_train_their_own_numbers(library):
    tenants = trained(["acme", "no"], apart=True, spec=library)
    plan = tenants.plan
    assert tenants.bank.own.shape == (2, plan.private)
    assert tenants.bank.common.numel() == 0
    fresh = Tenants(tiny_model("llama"), library)
    fresh.add("acme", seed=4)
    moved = {
        n
        for n, t in values(fresh, "acme").items()
        if not torch.equal(t, values(tenants, "acme")[n])
    }
    assert moved == plan.tensor.keys() - plan.common
    alone = values(trained(["no"], apart=True, spec=library), "no")
    # `mine` is a function of the examples of all.
    assert alone.keys() == values(tenants, "no").keys()
    with pytest.raises(BishareError, match="BS613"):
        Tenants(tiny_model("llama", hidden_size=96), library)


@pytest.mark.parametrize("spec", [LORA, LIBRARY, "library"])
def test_a_saved_tenant_goes_on_bit_for_bit(spec, library, tmp_path):
    """In another process, where it has another row; with a gradient that has no step yet."""
    given = library if spec == "library" else spec
    tenants = trained(["acme", "no"], apart=True, spec=given)
    tenants.forward_backward(examples("no", 5))
    tenants.save("no", tmp_path / "no")
    again = Tenants(tiny_model("llama"), given, apart=True)
    for name in ("x", "y", "new"):
        again.add(name, seed=9)
    again.load("new", tmp_path / "no")
    for one, name in ((tenants, "no"), (again, "new")):
        if spec == LIBRARY:
            one.step(**HOW)
        else:
            one.step(name, **HOW)
        one.forward_backward(examples(name, 6))
        one.step(name, **HOW)
    wanted = values(tenants, "no")
    assert all(torch.equal(t, wanted[n]) for n, t in values(again, "new").items())
    again.load("y", tmp_path / "no", optimizer=False)
    assert again.step(learning_rate=1.0).keys() <= {"x"}
    other = Tenants(tiny_model("llama"), LORA.replace("rank 4", "rank 2"))
    other.add("no")
    with pytest.raises(TrainError, match=r"BS743.*another plan"):
        other.load("no", tmp_path / "no")
    content = (tmp_path / "no" / FILE).read_bytes()
    (tmp_path / "no" / FILE).write_bytes(content[: len(content) // 2])
    before = values(again, "y")
    for folder in ("no", "nowhere"):
        with pytest.raises(TrainError, match="BS743"):
            again.load("y", tmp_path / folder)
    assert all(torch.equal(t, before[n]) for n, t in values(again, "y").items())


def test_a_tenant_that_comes_later_changes_nothing():
    def run(late):
        tenants = trained(["acme"], apart=True)
        tenants.forward_backward(examples("acme", 5))
        if late:
            tenants.add("late", seed=1)
            tenants.forward_backward(examples("late", 1))
        tenants.step("acme", **HOW)
        return values(tenants, "acme")

    wanted = run(late=False)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in run(late=True).items())


def test_samples_of_many_tenants():
    tenants = trained(["acme", "no"], apart=False)
    with torch.no_grad():
        tenants.bank.own *= 20  # So that they differ.
    prompts = [[5, 6, 7], [8, 9], [5, 6, 7], [8, 9]]
    names = ["acme", "no", None, "acme"]
    greedy = tenants.sample(prompts, names, max_tokens=6, temperature=0, stop=[1])
    assert len({tuple(sample.tokens) for sample in greedy}) > 1
    for prompt, name, sample in zip(prompts, names, greedy, strict=True):
        (alone,) = tenants.sample([prompt], [name], max_tokens=6, temperature=0, stop=[1])
        assert alone.tokens == sample.tokens
        found = tenants.forward_backward(
            [Example([*prompt, *sample.tokens], tenant=name)], backward=False
        )
        end = found.logprobs[0][len(prompt) - 1 :].tolist()
        assert sample.logprobs == pytest.approx(end, abs=1e-4)
    one, two = (tenants.sample(prompts, names, max_tokens=6, seed=3) for _ in range(2))
    assert one == two != tenants.sample(prompts, names, max_tokens=6, seed=4)
    (whole,) = tenants.sample([[5, 6]], "no", max_tokens=6, seed=3, stop=[1])
    (cut,) = tenants.sample([[5, 6]], ["no"], max_tokens=6, seed=3, stop=[whole.tokens[2]])
    assert cut.tokens == whole.tokens[: whole.tokens.index(whole.tokens[2]) + 1]
    assert not tenants.model.training


def test_an_interrupted_pass_adds_nothing(monkeypatch):
    tenants = trained(["acme", "no"], apart=True)
    tenants.forward_backward(examples("acme", 1))
    before = tenants.bank.own.grad.clone()
    run, calls = tenants.run, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*given)

    monkeypatch.setattr(tenants, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tenants.forward_backward([*examples("acme", 2), *examples("no", 3)])
    assert torch.equal(tenants.bank.own.grad, before)


def test_an_interrupted_step_is_whole(monkeypatch):
    def run(signalled):
        tenants = trained(["acme"], apart=True)
        tenants.forward_backward(examples("acme", 1))
        step = tenants.optimizer.step

        def interrupted():
            os.kill(os.getpid(), signal.SIGINT)
            step()

        monkeypatch.setattr(tenants.optimizer, "step", interrupted if signalled else step)
        with pytest.raises(KeyboardInterrupt) if signalled else nullcontext():
            tenants.step("acme", **HOW)
        assert not tenants.bank.own.grad.any()
        return values(tenants, "acme")

    wanted = run(signalled=False)
    assert all(torch.equal(tensor, wanted[n]) for n, tensor in run(signalled=True).items())


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"Tenants\(model, spec\).*load it first"):
        Tenants("lora", tiny_model("llama"))
    none = Tenants(tiny_model("llama"), "lora")
    for call in (partial(none.step, "acme", learning_rate=1.0), partial(none.save, "acme", "out")):
        with pytest.raises(TrainError, match=r"BS731.*tenants.add"):
            call()
    none.add("acme")
    with pytest.raises(TrainError, match=r"BS731.*`forward_backward` comes first"):
        none.step("acme", learning_rate=1.0)
    for rows in ([{"prompt": "a", "completion": "b"}], [Example("a fox", tenant="acme")]):
        with pytest.raises(TypeError, match=r"write `\[Example\(.* with ids"):
            none.forward_backward(rows)
    for name in ("nobody", None, "__base__"):
        with pytest.raises(TrainError, match=rf"BS731.*{name}.*only tenants .*tenants\.add"):
            none.forward_backward([Example([3, 4, 5], tenant=name)])
    with pytest.raises(TrainError, match=r"BS731.*cross_entropy, importance_sampling, ppo"):
        none.forward_backward(examples("acme", 1), "cispo")
    with pytest.raises(BishareError, match="BS673"):
        Tenants(tiny_model("llama"), "hydralora")


def state(tenants, name):
    return {key: tensor.clone() for key, tensor in tenants._held(name).items()}


@pytest.fixture
def waiting():
    """Two tenants with moments, counts and gradients that have no step yet."""
    tenants = trained(["acme", "no"], apart=True)
    tenants.forward_backward([*examples("acme", 5), *examples("no", 6)])
    return tenants


def row(**values):
    return [Example([5, 6, 7], tenant="acme", **values)]


REFUSED = {
    "a name in use": (lambda t: t.add("acme", 5), "BS641"),
    "no name": (lambda t: t.add("a/b"), "BS638"),
    "an empty name": (lambda t: t.add(""), "BS731.*name"),
    "no seed": (lambda t: t.add("new", seed=None), "BS731.*seed"),
    "remove nobody": (lambda t: t.remove("nobody"), "BS731.*the tenants are acme, no"),
    "load nothing": (lambda t: t.load("acme", "nowhere"), "BS743"),
    "step nobody": (lambda t: t.step("acme", "nobody", learning_rate=1e-2), "BS731.*nobody"),
    **{
        f"a rate of {rate!r}": (
            lambda t, rate=rate: t.step("acme", learning_rate=rate), "BS731.*learning_rate"
        )
        for rate in (float("nan"), float("inf"), -1.0, 2.0, "x", None, True)
    },
    "betas": (lambda t: t.step(learning_rate=1e-2, betas=(0.9, 1.0)), "BS731.*betas.*less than 1"),
    "decay": (lambda t: t.step(learning_rate=1e-2, weight_decay=float("nan")), "BS731.*weight_decay"),
    "a norm": (lambda t: t.step(learning_rate=1e-2, max_norm=-1.0), "BS731.*max_norm.*least is 0"),
    "no tokens": (lambda t: t.forward_backward([Example([], tenant="acme")]), "BS731.*nothing follows"),
    "one token": (lambda t: t.forward_backward([Example([5], tenant="acme")]), "BS731.*nothing follows"),
    "a token": (lambda t: t.forward_backward([Example([5, 600], tenant="acme")]), "BS731.*600"),
    "half a token": (lambda t: t.forward_backward([Example([5, 1.5], tenant="acme")]), "BS731.*1.5"),
    "targets": (lambda t: t.forward_backward(row(targets=[1])), "BS731.*targets.*3 tokens"),
    "too few weights": (lambda t: t.forward_backward(row(weights=[1.0])), "BS731.*2 targets"),
    "too many weights": (lambda t: t.forward_backward(row(weights=[1.0] * 3)), "BS731.*2 targets"),
    "no advantages": (
        lambda t: t.forward_backward(row(logprobs=[-1, -1]), "ppo"), "BS731.*advantages.*needs one"
    ),
    "too few logprobs": (
        lambda t: t.forward_backward(row(logprobs=[-1], advantages=[1, 1]), "importance_sampling"),
        "BS731.*logprobs.*2 targets",
    ),
    "one row without": (
        lambda t: t.forward_backward(
            [*row(logprobs=[-1, -1], advantages=[1, 1]), Example([5, 6, 7], tenant="no")], "ppo"
        ),
        "BS731.*logprobs.*needs one",
    ),
    "no prompts": (lambda t: t.sample([], "acme"), "BS731.*prompts"),
    "an empty prompt": (lambda t: t.sample([[]], "acme"), "BS731.*one token"),
    "prompts and tenants": (lambda t: t.sample([[5]], ["acme", "no"]), "BS731.*1 prompts"),
    "sample nobody": (lambda t: t.sample([[5]], "nobody"), "BS731.*nobody"),
    **{
        f"a temperature of {value}": (
            lambda t, value=value: t.sample([[5]], "acme", temperature=value), "BS731.*temperature"
        )
        for value in (float("nan"), float("inf"), -1)
    },
    "top_p": (lambda t: t.sample([[5]], "acme", top_p=0.0), "BS731.*top_p"),
    "top_k": (lambda t: t.sample([[5]], "acme", top_k=-3), "BS731.*top_k"),
    "max_tokens": (lambda t: t.sample([[5]], "acme", max_tokens=0), "BS731.*max_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_leaves_each_tenant_bit_for_bit(waiting, what):
    call, text = REFUSED[what]
    before = {name: state(waiting, name) for name in ("acme", "no")}
    assert before["acme"]["own.gradient"].any()
    assert before["acme"]["own.exp_avg"].any()
    with pytest.raises(BishareError, match=f"(?s){text}"):
        call(waiting)
    assert waiting.names == [*waiting.handle.adapters] == ["acme", "no"]
    for name, held in before.items():
        after = state(waiting, name)
        assert after.keys() == held.keys()
        assert all(torch.equal(tensor, held[key]) for key, tensor in after.items())
    assert [*waiting.step(**HOW)] == ["acme", "no"]


def test_an_added_tenant_that_fails_is_taken_out_again(waiting, monkeypatch):
    before = state(waiting, "acme")
    library = waiting.handle["acme"]
    monkeypatch.setattr(type(library), "tensors", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        waiting.add("new")
    monkeypatch.undo()
    assert waiting.names == [*waiting.handle.adapters] == ["acme", "no"]
    assert all(torch.equal(t, before[key]) for key, t in state(waiting, "acme").items())


@pytest.mark.parametrize("by_handle", [False, True])
def test_a_removed_tenant_changes_no_other(waiting, by_handle):
    waiting.add("mid", 3)
    waiting.forward_backward(examples("mid", 1))
    before = {name: state(waiting, name) for name in ("acme", "no")}
    if by_handle:
        waiting.handle.delete_adapter("acme")
        del before["acme"]
        with pytest.raises(TrainError, match=r"BS731.*the model lost it: `tenants.remove"):
            waiting.step("acme", **HOW)
        waiting.remove("acme")
    waiting.remove("mid")
    names = [*before]
    assert waiting.names == [*waiting.handle.adapters] == names
    for name, held in before.items():
        assert all(torch.equal(t, held[key]) for key, t in state(waiting, name).items())
    assert [*waiting.step(**HOW)] == names
    for name in names:
        waiting.remove(name)
    assert waiting.names == []
    waiting.add("acme", 2)
    assert waiting.forward_backward(examples("acme", 1)).losses.keys() == {"acme"}


VERA = "spec v\ntarget q_proj, v_proj\nshare v per model rank 4 via SS\n  init A kaiming_normal, B kaiming_normal\n  freeze A, B\n  gain rank init 0.1, out init 0\n"


def test_tenants_have_the_frozen_tensors_of_the_first_and_states_of_others_are_refused(tmp_path):
    def begun(spec, seed, model_seed=0):
        tenants = Tenants(tiny_model("llama", seed=model_seed), spec, apart=True)
        tenants.add("sampler", seed)
        tenants.add("acme", 5)
        return tenants

    def logprobs(tenants, name):
        return tenants.forward_backward(
            [Example([5, 6, 7, 8], tenant=name)], backward=False
        ).logprobs[0]

    tenants = begun(VERA, 0)
    for _ in range(3):
        tenants.forward_backward([Example([5, 6, 7, 8], tenant="acme")])
        tenants.step("acme", learning_rate=5e-2)
    wanted = logprobs(tenants, "acme")
    assert not torch.equal(wanted, logprobs(tenants, None))
    tenants.save("acme", tmp_path / "acme")
    tenants.load("sampler", tmp_path / "acme", optimizer=False)
    assert torch.equal(logprobs(tenants, "sampler"), wanted)
    again = begun(VERA, 0)
    again.load("acme", tmp_path / "acme")
    assert torch.equal(logprobs(again, "acme"), wanted)
    for other, reason in (
        (begun(VERA, 1), "another seed"),
        (begun(VERA, 0, model_seed=9), "another base"),
        (begun(VERA.replace("0.1", "0.2"), 0), "another plan"),
    ):
        before = state(other, "acme")
        with pytest.raises(TrainError, match=rf"BS743.*{reason}"):
            other.load("acme", tmp_path / "acme")
        assert all(torch.equal(t, before[key]) for key, t in state(other, "acme").items())


def test_a_script_that_ends_without_close_says_nothing():
    script = """
from bishare_dsl.testing.models import tiny_model
from tenants import Example, Tenants
tenants = Tenants(tiny_model("llama"), "lora")
tenants.add("acme")
tenants.forward_backward([Example([3, 4, 5], tenant="acme")])
"""
    root = str(EXAMPLES.parent)
    settings = os.environ | {"PYTHONPATH": f"{EXAMPLES}:{root}"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=settings, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
