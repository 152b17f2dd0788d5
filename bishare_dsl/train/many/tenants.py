"""Train adapters of many tenants on one model, call by call: forward and backward, step, sample, save.

(The interface of Tinker, https://tinker-docs.thinkingmachines.ai, in one process.)

    tenants = Tenants(model, "library_core")
    tenants.add("acme", seed=1)
    tenants.forward_backward([Example(tokens, tenant="acme")])
    tenants.step("acme", learning_rate=2e-3)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from bishare_dsl.adapted.handle import Handle
from bishare_dsl.adapted.interrupts import uninterrupted
from bishare_dsl.batched.bank import Bank
from bishare_dsl.batched.batches import mixed_batch_problems
from bishare_dsl.compiler import ResolvedSpec, make_plan
from bishare_dsl.diagnostics import AdapterError, one_line, raise_errors
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.folder.contents import StoredAdapter
from bishare_dsl.folder.files import names_in, place_of
from bishare_dsl.loading import read_fitting
from bishare_dsl.peft.method import check_arguments, install
from bishare_dsl.spec import Spec
from bishare_dsl.train.data.batches import IGNORED, Collator
from bishare_dsl.train.data.batches import Example as Row
from bishare_dsl.train.errors import TrainError, translate_refusals
from bishare_dsl.train.loss import are_likeliest, learned_logits
from bishare_dsl.train.many.start import Tried
from bishare_dsl.train.optimizer import RowAdamW, Settings
from bishare_dsl.train.prepare import first_of
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.request import Start
from bishare_dsl.train.tasks import MicroBatch, Task, cut
from bishare_dsl.writing import replace_file

FILE = "tenant.safetensors"
"""The file of a saved tenant: its values, the state of its optimizer and its gradients."""

Values = Mapping[str, Tensor]
Loss = Callable[[Tensor, Values], Tensor]
"""Maps log-probabilities ``(rows, positions)``, and values of the rows by name, to losses ``(rows,)``."""


def cross_entropy(logprobs: Tensor, values: Values) -> Tensor:
    """Return minus the weighted sum of the log-probabilities."""
    return -(logprobs * values["weights"]).sum(1)


def importance_sampling(logprobs: Tensor, values: Values) -> Tensor:
    """Return minus the sum of the advantages, each times the ratio of the new to the old probability."""
    return -((logprobs - values["logprobs"]).exp() * values["advantages"]).sum(1)


def ppo(logprobs: Tensor, values: Values, clip: tuple[float, float] = (0.8, 1.2)) -> Tensor:
    """Return the clipped loss of PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7)."""
    ratio, advantages = (logprobs - values["logprobs"]).exp(), values["advantages"]
    return -torch.minimum(ratio * advantages, ratio.clamp(*clip) * advantages).sum(1)


LOSSES: Mapping[str, Callable[..., Tensor]] = {
    loss.__name__: loss for loss in (cross_entropy, importance_sampling, ppo)
}


@dataclass(frozen=True)
class Example:
    """One row of a forward pass.

    Attributes:
        tokens: token ids; without ``targets``, each is predicted from those before it.
        weights: of the targets, for cross-entropy; by default 1.
        tenant: the adapter; None for the base, which has no gradient.
        targets: the token to predict after each of the ``tokens``.
        logprobs, advantages: of the targets, for importance sampling and PPO.
    """

    tokens: Sequence[int]
    weights: Sequence[float] | None = None
    tenant: str | None = None
    targets: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None
    advantages: Sequence[float] | None = None

    @property
    def labels(self) -> Sequence[int]:
        """The token to predict after each that the model reads."""
        return self.tokens[1:] if self.targets is None else self.targets

    def encoded(self) -> Row:
        """Return the tokens and labels, with a last token that predicts none."""
        ids = self.tokens if self.targets is None else [*self.tokens, 0]
        return {"input_ids": [*ids], "labels": [IGNORED, *self.labels]}

    def judged(self) -> Row:
        """Return the same, with labels where there is a weight."""
        weights = [0.0, *(self.weights or [1.0] * len(self.labels))]
        row = self.encoded()
        labels = [t if w else IGNORED for t, w in zip(row["labels"], weights, strict=True)]
        return {**row, "labels": labels}


@dataclass(frozen=True)
class Pass:
    """The result of a forward pass.

    Attributes:
        logprobs: the log-probabilities of each example's targets, on the CPU.
        losses: each tenant's sum of the losses of its examples.
        refused: tenants whose gradient was not finite; nothing was added to their gradients.
    """

    logprobs: list[Tensor]
    losses: dict[str, float]
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A sampled continuation: its tokens, their log-probabilities in the distribution sampled from, and
    whether it ends with a token that stops.
    """

    tokens: list[int]
    logprobs: list[float]
    stopped: bool


class Tenants:
    """Adapters of one spec on one model, each of which trains when it is called.

    With a library, a tenant trains its private tensors, and the shared ones stay as they are. With a spec
    that names `adapter` in a key, shared tensors train too: they collect the gradients of all tenants, and
    step when `step` is called without a name.

    Args:
        model: the base, on its device. It gets an adapter for each tenant.
        spec: as for `compile_spec`, or the folder of a library.
        params: values for params of the spec.
        apart: run each tenant's rows in a separate forward, so that results do not depend on other tenants'
            rows bit for bit. Otherwise they equal them up to rounding.
        at_once: the largest number of rows in one forward.

    Raises:
        BishareError: the spec does not fit the model, or supports no mixed batches (BS673, BS679).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        spec: Spec | str | os.PathLike[str] | ResolvedSpec | StoredAdapter,
        *,
        params: Mapping[str, int | float | str] | None = None,
        apart: bool = False,
        at_once: int = 32,
    ) -> None:
        check_arguments("Tenants(model, spec)", None, model)
        self.model, self.apart, self.at_once = model, apart, at_once
        if isinstance(spec, str | os.PathLike) and names_in(spec):
            spec, _ = read_fitting(first_of(os.fspath(spec)), model)
        self.library = spec if isinstance(spec, StoredAdapter) else None
        text = spec.spec_text if isinstance(spec, StoredAdapter) else spec
        resolved = text if isinstance(text, ResolvedSpec) else make_plan(text, model, params or {})
        self._spec, self.plan = resolved, resolved.plan
        raise_errors(AdapterError, [*mixed_batch_problems("of each tenant", self.plan)])
        shares = self.library is not None or self.plan.is_library
        self.shared = self.plan.common if shares else frozenset()
        self.fixed = self.shared if self.library is not None else frozenset()
        self.names: list[str] = []
        self._waiting: set[str] = set()  # Tenants with gradients.
        self._open = ExitStack()
        self._bank: Bank | None = None

    @property
    def handle(self) -> Handle:
        """The handle of the model, which saves, merges and switches adapters."""
        if not self.names:
            raise _wrong("tenant", None, "there is none yet: `tenants.add('acme')` adds one")
        return cast("Handle", self.model.bishare)

    @uninterrupted()
    def add(
        self, name: str, seed: int = 0, *, start: Start = "zero", examples: Sequence[Example] = ()
    ) -> tuple[str, ...]:
        """Add a tenant, whose private tensors get the initial values of a seed; return notes for the user.

        Args:
            name: of the adapter.
            seed: of the initial values.
            start: ``mean``, ``nearest``, ``mixture`` or ``auto`` start at a sum of the library's members,
                weighed by their losses on ``examples``; ``auto`` is ``mixture``.
            examples: of the new tenant. Only targets with a weight count.

        Raises:
            AdapterError: the name is invalid (BS638) or in use (BS641).
            TrainError: there is no such start (BS731).
        """
        if start != "zero" and not (start in get_args(Start) and self.library and examples):
            reason = f"one of {', '.join(get_args(Start))}, with a library and `examples`, or zero"
            raise _wrong("start", start, reason)
        live = [] if self._bank is None else self.names
        states = {n: {k: t.clone() for k, t in self._held(n).items()} for n in live}
        self.close()
        notes = install(self.model, self._spec, seed, name)
        self.names.append(name)
        if self.library is not None or self.plan.is_library:
            # Frozen tensors are generated from one seed: the library's, or the first tenant's.
            values = (self.library or self.handle[self.names[0]]).tensors()
            frozen = {tensor.name for tensor in self.plan.tensors if not tensor.trainable}
            for tensor in frozen | (self.plan.common if self.library else set()):
                self.handle[name].tensors()[tensor].data.copy_(values[tensor])
        for tenant, state in states.items():
            self._restore(tenant, state)
        if self.library is not None and start != "zero":
            task = Task(name, cast(Any, [row.judged() for row in examples]))
            tried = Tried(self, place_of(self.library.folder)[0], [task])
            self.bank.own.data[self._row(name)] = tried.choose(start, Reporter())[0][0]
        return notes

    def close(self) -> None:
        """End joint training: tenants are ordinary adapters of the model. Gradients and moments are lost."""
        self._open.close()
        self._bank = None

    @property
    def bank(self) -> Bank:
        """The tensors of all tenants, one row each; `optimizer` is its optimizer."""
        if self._bank is None:
            bank = self.handle.bank(self.names, self.shared, self.fixed)
            self._bank = self._open.enter_context(bank)
            self.optimizer = RowAdamW(self._bank.parameters)
        return self._bank

    def _row(self, name: str) -> int:
        return self.names.index(self.handle[name].name)  # Or the handle says that there is none.

    def run(self, batch: MicroBatch, loss: Loss = cross_entropy) -> tuple[Tensor, Tensor, Tensor]:
        """Run one forward.

        Returns:
            The losses ``(rows,)``, the log-probabilities of the targets ``(rows, positions)``, 0 where there
            is none, and whether all targets of a row are the likeliest ``(rows,)``.
        """
        model = cast(Any, self.model)
        where: Any = {"device": model.device, "non_blocking": True}
        parts = batch.inputs, batch.values
        inputs, values = ({name: t.to(**where) for name, t in part.items()} for part in parts)
        with self.handle.rows(batch.names):
            logits, labels = learned_logits(model, model.forward, inputs)
        flat, targets = logits.float().flatten(0, 1), labels.flatten()
        negative = F.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="none")
        logprobs = -negative.view(labels.shape)
        return loss(logprobs, values), logprobs, are_likeliest(logits, labels)

    def forward_backward(
        self,
        examples: Sequence[Example],
        loss: str | Callable[[list[Tensor], Sequence[Example]], Tensor] = "cross_entropy",
        *,
        backward: bool = True,
        **settings: Any,
    ) -> Pass:
        """Add the gradient of a loss to the gradients of the examples' tenants.

        Args:
            examples: of any tenants.
            loss: ``cross_entropy``, ``importance_sampling`` or ``ppo``, which are sums over targets and
                examples; or a function of the log-probabilities of all examples and of the examples, which
                takes a second forward.
            backward: False computes log-probabilities and losses alone.
            **settings: of the loss, such as ``clip=(0.8, 1.2)`` of PPO.

        Raises:
            TrainError: there is no such loss, or no tenant (BS731), or the gradient of shared tensors that
                train is not finite (BS750). Nothing was added.
        """
        if any(isinstance(getattr(e, "tokens", ""), str) for e in examples):
            raise TypeError("write `[Example(tokens, tenant='acme')]` with ids of a tokenizer")
        if callable(loss):
            leaves = self.forward_backward(examples, backward=False).logprobs
            total = loss([leaf.requires_grad_() for leaf in leaves], examples)
            pairs = zip(examples, torch.autograd.grad(total, leaves), strict=True)
            examples = [replace(e, weights=(-gradient).tolist()) for e, gradient in pairs]
            loss = "cross_entropy"
        if loss not in LOSSES:
            raise _wrong("loss", loss, f"the losses are {', '.join(LOSSES)}")
        if backward and (others := [e.tenant for e in examples if e.tenant not in self.names]):
            reason = "only tenants have gradients: `tenants.add(name)` adds one, `backward=False` needs none"
            raise _wrong("tenant", others[0], reason)
        measure, parameters = partial(LOSSES[loss], **settings), self.bank.parameters
        before, mode = [p.grad for p in parameters], self.model.training
        logprobs: dict[int, Tensor] = {}
        losses = dict.fromkeys((e.tenant for e in examples if e.tenant is not None), 0.0)
        try:
            for p in parameters:
                p.grad = None
            self.model.train(backward)  # A mixed batch has gradients in training mode alone.
            for numbers in self._passes(examples):
                rows = [examples[i] for i in numbers]
                with torch.set_grad_enabled(backward):
                    each, found, _ = self.run(_collated(rows), measure)
                if backward and each.requires_grad:
                    each.sum().backward()
                for i, row, value, part in zip(numbers, rows, each.tolist(), found, strict=True):
                    logprobs[i] = part[: len(row.labels)].detach().cpu()
                    if row.tenant is not None:
                        losses[row.tenant] += value
            refused = self._add_to(before)
        except BaseException:
            for p, gradient in zip(parameters, before, strict=True):
                p.grad = gradient
            raise
        finally:
            self.model.train(mode)
        if backward:
            self._waiting |= losses.keys() - refused
        return Pass([logprobs[i] for i in range(len(examples))], losses, tuple(refused))

    def _passes(self, examples: Sequence[Example]) -> list[list[int]]:
        """Divide examples into forwards, by number: of one tenant each with ``apart``."""
        groups = dict[str | None, list[int]]()
        for i, example in enumerate(examples):
            groups.setdefault(example.tenant if self.apart else None, []).append(i)
        cuts = ((g, cut([examples[i].encoded() for i in g], self.at_once)) for g in groups.values())
        return [[numbers[i] for i in some] for numbers, passes in cuts for some in passes]

    def _add_to(self, before: Sequence[Tensor | None]) -> list[str]:
        """Add the finite new gradients to those from before; return the tenants with others."""
        bank, bad = self.bank, set[int]()
        if bank.own.grad is not None:
            finite = bank.own.grad.isfinite().all(1, keepdim=True)
            bad = {row for row, (yes,) in enumerate(finite.tolist()) if not yes}
            bank.own.grad = torch.where(finite, bank.own.grad, 0)
        if bank.common.grad is not None and not bank.common.grad.isfinite().all():
            kept = "nothing was added: tenants share tensors that train"
            raise TrainError(codes.NOT_FINITE(what="gradient", step=0, value="nan", kept=kept))
        for p, gradient in zip(bank.parameters, before, strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else gradient + p.grad
        return [self.names[row] for row in sorted(bad)]

    @uninterrupted()
    def step(self, *tenants: str, learning_rate: float, **settings: Any) -> dict[str, float]:
        """Do a step of AdamW for some tenants, each with its gradient, and clear these gradients.

        Args:
            *tenants: by default all with a gradient, and the shared tensors if they train.
            learning_rate: of this step.
            **settings: ``betas``, ``eps`` and ``weight_decay`` of AdamW, and ``max_norm``, to which each
                tenant's gradient is clipped, as in `bishare_dsl.train.optimizer.Settings`.

        Returns:
            The norm of each tenant's gradient, before clipping.
        """
        bank, names = self.bank, tenants or sorted(self._waiting)
        rates = {self._row(name): learning_rate for name in names}
        if idle := sorted({*names} - self._waiting):
            raise _wrong("tenant", idle[0], "it has no gradient: `forward_backward` comes first")
        self.optimizer.settings = Settings(**settings)
        self.optimizer.rates = [rates]
        if bank.common.numel():
            self.optimizer.rates.append({} if tenants else {0: learning_rate})
        for p in bank.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        norms = {n: float(cast(Tensor, bank.own.grad)[self._row(n)].norm()) for n in names}
        if wrong := [name for name, norm in norms.items() if not isfinite(norm)]:
            kept = f"`{wrong[0]}` and all others stay as they are"
            raise TrainError(codes.NOT_FINITE(what="gradient", step=0, value="inf", kept=kept))
        self.optimizer.step()
        for p, rows in zip(bank.parameters, self.optimizer.rates, strict=True):
            cast(Tensor, p.grad)[[*rows]] = 0
        self._waiting -= {*names}
        return norms

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        tenant: str | Sequence[str | None] | None,
        *,
        max_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> list[Sample]:
        """Continue each prompt with its tenant's adapter, all in one mixed batch.

        Args:
            prompts: token ids.
            tenant: the adapter of all prompts, or of each; None for the base.
            max_tokens: the largest number of tokens.
            temperature: 0 takes the likeliest token.
            top_k, top_p: of `GenerationConfig`; 0 and 1 sample from all tokens.
            stop: tokens that end a continuation; by default those of the model.
            seed: of the samples. The random numbers of the process do not change.
        """
        model, device = cast(Any, self.model), cast(Any, self.model).device
        ends = model.generation_config.eos_token_id if stop is None else stop
        ends = [ends] if isinstance(ends, int) else [*(ends or ())]
        reads = [torch.tensor([*prompt], device=device) for prompt in prompts]
        padded: Any = {"batch_first": True, "padding_side": "left"}
        parts = reads, [torch.ones_like(read) for read in reads]
        ids, mask = (pad_sequence(part, **padded) for part in parts)
        how: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            how = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        how |= {"return_dict_in_generate": True, "output_scores": True, "pad_token_id": 0}
        how |= {"max_new_tokens": max_tokens, "eos_token_id": ends or None}
        mode = model.training
        model.eval()
        try:
            forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
            each = [tenant] * len(prompts) if tenant is None or isinstance(tenant, str) else tenant
            with forked, self.handle.rows(each):
                if seed is not None:
                    torch.manual_seed(seed)
                made = model.generate(input_ids=ids, attention_mask=mask, **how)
        finally:
            model.train(mode)
        scores = torch.stack(made.scores, dim=1).float().log_softmax(-1)
        tokens = made.sequences[:, ids.shape[1] :]
        chosen = scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist()
        samples = []
        for row, logprobs in zip(tokens.tolist(), chosen, strict=True):
            length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            samples.append(Sample(row[:length], logprobs[:length], row[length - 1] in ends))
        return samples

    def save(self, name: str, folder: str | os.PathLike[str]) -> None:
        """Write a tenant's values, gradients and optimizer state into one file of a folder, in one step.

        If shared tensors train, the file has them too. `model.bishare` saves tenants as adapters.

        Raises:
            TrainError: the folder cannot be written (BS747).
        """
        path = Path(folder)
        state = {key: tensor.cpu().clone() for key, tensor in self._held(name).items()}
        with translate_refusals(path):
            path.mkdir(parents=True, exist_ok=True)
            replace_file(path / FILE, safetensors.save(state, {"plan": self._digest}))

    def load(self, name: str, folder: str | os.PathLike[str], *, optimizer: bool = True) -> None:
        """Restore a tenant, bit for bit, and with it the shared tensors if they train.

        Args:
            name: of the tenant, which need not be the saved one's.
            folder: from `save`.
            optimizer: False restores the values alone, and clears gradients and the optimizer's state.

        Raises:
            TrainError: there is no such file, or it is of another spec, base or library (BS743).
        """
        wanted, digest, reason = self._held(name), None, "it is of another spec, base or library"
        try:
            with safe_open(Path(folder) / FILE, framework="pt") as file:
                digest = (file.metadata() or {}).get("plan")
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            reason, state = one_line(error), {}
        shapes, found = ({k: t.shape for k, t in part.items()} for part in (wanted, state))
        if digest != self._digest or shapes != found:
            raise TrainError(codes.BROKEN_CHECKPOINT(folder=folder, reason=reason))
        if not optimizer:
            state = {k: t if k.endswith(".value") else t * 0 for k, t in state.items()}
        self._restore(name, state)

    @property
    def _digest(self) -> str:
        """Identifies the plan, and the library's file of shared tensors."""
        return self.plan.digest + ("" if self.library is None else self.library.config.tensors)

    def _held(self, name: str) -> dict[str, Tensor]:
        """Return views of a tenant's values, gradients and optimizer state, and of the shared ones."""
        held, row = dict[str, Tensor](), self._row(name)
        for part, p, at in (("own", self.bank.own, row), ("common", self.bank.common, 0)):
            if p.numel():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                tensors = {"value": p.detach(), "gradient": p.grad, **self.optimizer.state[p]}
                held |= {f"{part}.{key}": tensor[at] for key, tensor in tensors.items()}
        return held

    @uninterrupted()
    def _restore(self, name: str, state: Mapping[str, Tensor]) -> None:
        for key, tensor in self._held(name).items():
            tensor.copy_(state[key])
        waits = bool(state["own.gradient"].any())
        self._waiting = self._waiting | {name} if waits else self._waiting - {name}


def _wrong(name: str, value: Any, reason: str) -> TrainError:
    help = "docs/four-calls.md shows the calls in order"
    return TrainError(codes.WRONG_VALUE(name=name, value=value, reason=reason, help=help))


def _collated(rows: Sequence[Example]) -> MicroBatch:
    """Pad examples on the right."""
    rows = [replace(r, weights=[1.0] * len(r.labels)) if r.weights is None else r for r in rows]
    values = {}
    for name in ("weights", "logprobs", "advantages"):
        part: list[Any] = [getattr(row, name) for row in rows]
        if all(value is not None for value in part):
            given = [torch.as_tensor(value, dtype=torch.float32) for value in part]
            values[name] = pad_sequence(given, batch_first=True)
    inputs = Collator(0).predicting([row.encoded() for row in rows])
    return MicroBatch(inputs, [row.tenant for row in rows], values)
