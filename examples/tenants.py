"""Train adapters of many tenants on one model, call by call: forward and backward, step, sample, save.

(The interface of Tinker, https://tinker-docs.thinkingmachines.ai; `tinker_server.py` serves it.)

    tenants = Tenants(model, "out/library")
    tenants.add("acme", seed=1)
    tenants.forward_backward([Example(tokens, tenant="acme")])
    tenants.step("acme", learning_rate=2e-3)

Each call checks its arguments first. A call that is refused or interrupted leaves every tenant as it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from bishare_dsl.adapted.handle import Handle
from bishare_dsl.adapted.interrupts import uninterrupted
from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import one_line
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.folder.files import names_in
from bishare_dsl.folder.fingerprint import Fingerprint, difference
from bishare_dsl.loading import read_fitting
from bishare_dsl.spec import Spec
from bishare_dsl.train.data.batches import IGNORED, Collator
from bishare_dsl.train.data.batches import Example as Row
from bishare_dsl.train.errors import TrainError, translate_refusals
from bishare_dsl.train.many.adapters import TaskAdapters, Values, cross_entropy
from bishare_dsl.train.optimizer import Settings
from bishare_dsl.train.tasks import MicroBatch, cut
from bishare_dsl.writing import replace_file

FILE = "tenant.safetensors"
"""The file of a saved tenant: its values, the state of its optimizer and its gradients."""
HIGHEST_RATE = 1.0
"""The highest learning rate; with AdamW, each number would move by as much in a step."""


def importance_sampling(logprobs: Tensor, values: Values) -> Tensor:
    """Return minus the sum of the advantages, each times the ratio of the new to the old probability."""
    ratio = (logprobs - values["logprobs"]).exp()
    return -(ratio * values["advantages"]).sum(1)


def ppo(logprobs: Tensor, values: Values, clip: tuple[float, float] = (0.8, 1.2)) -> Tensor:
    """Return the clipped loss of PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7)."""
    ratio = (logprobs - values["logprobs"]).exp()
    advantages = values["advantages"]
    return -torch.minimum(ratio * advantages, ratio.clamp(*clip) * advantages).sum(1)


LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "importance_sampling": importance_sampling,
    "ppo": ppo,
}
NEEDED: Mapping[str, tuple[str, ...]] = {
    "cross_entropy": (),
    "importance_sampling": ("logprobs", "advantages"),
    "ppo": ("logprobs", "advantages"),
}
"""By the loss, what each of its examples has beside the tokens."""


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
        ids = list(self.tokens)
        if self.targets is not None:
            ids.append(0)
        return {"input_ids": ids, "labels": [IGNORED, *self.labels]}


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


class Tenants(TaskAdapters):
    """Adapters of one spec on one model, each of which trains when it is called.

    With a library, a tenant trains its private tensors, and the shared ones stay as they are. With a spec
    that names `adapter` in a key, shared tensors train too: they collect the gradients of all tenants, and
    step when `step` is called without a name. Frozen tensors are the library's, or the first tenant's.

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
        spec: Spec | str | os.PathLike[str],
        *,
        params: Mapping[str, int | float | str] | None = None,
        apart: bool = False,
        at_once: int = 32,
    ) -> None:
        if not isinstance(model, PreTrainedModel):
            raise TypeError("`Tenants(model, spec)` changes a model in memory: load it first")
        names = names_in(spec) if isinstance(spec, str | os.PathLike) else ()
        if names:
            super().__init__(
                model, read_fitting(f"{os.fspath(cast(str, spec))}#{names[0]}", model)[0]
            )
        else:
            super().__init__(model, make_plan(spec, model, params or {}))
        self.apart = apart
        self.at_once = at_once
        self.seed: int | None = None if self.library is None else self.library.config.seed
        self._waiting = set[str]()  # Tenants with gradients.

    @property
    def handle(self) -> Handle:
        """The handle of the model, which saves, merges and switches adapters."""
        if not self.names:
            raise _wrong("tenant", None, "there is none yet: `tenants.add('acme')` adds one")
        return super().handle

    # Come and go ------------------------------------------------------------------------------------------

    @uninterrupted()
    def add(self, name: str, seed: int = 0) -> tuple[str, ...]:
        """Add a tenant; return notes for the user.

        Raises:
            AdapterError: the name is invalid (BS638) or in use (BS641).
            TrainError: there is no name, or the seed is no whole number (BS731).
        """
        _check_whole("seed", seed, least=0)
        if not isinstance(name, str) or not name:
            raise _wrong("name", name, "an adapter has a name")
        before = list(self.names)
        with self._reopened():
            try:
                notes = super().add(name, seed)
            except BaseException:
                if name not in before and name in self.names:
                    self.names.remove(name)
                    self.model.bishare.delete_adapter(name)
                raise
        if self.seed is None:
            self.seed = seed
        return notes

    @uninterrupted()
    def remove(self, name: str) -> None:
        """Take a tenant out of the model; the others stay as they are.

        Raises:
            TrainError: there is no such tenant (BS731).
        """
        if name not in self.names:
            raise _wrong("tenant", name, f"the tenants are {', '.join(self.names) or 'none'}")
        with self._reopened():
            if name in self.model.bishare.adapters:
                self.model.bishare.delete_adapter(name)
            self.names.remove(name)
            self._waiting.discard(name)
        if not self.names and self.library is None:
            self.seed = None

    @contextmanager
    def _reopened(self) -> Iterator[None]:
        """Close the bank, and restore the states of the tenants that remain after the block."""
        states = dict[str, dict[str, Tensor]]()
        if self._bank is not None:
            for name in self.names:
                states[name] = {key: tensor.clone() for key, tensor in self._held(name).items()}
        waiting = set(self._waiting)
        self.close()
        try:
            yield
        finally:
            for name, state in states.items():
                if name in self.names:
                    self._restore(name, state)
            self._waiting = waiting & set(self.names)

    def _check_tenant(self, name: object) -> None:
        """Check that there is a tenant of this name (BS731)."""
        if name not in self.names:
            raise _wrong("tenant", name, "only tenants train: `tenants.add(name)` adds one")
        if name not in self.handle.adapters:
            raise _wrong("tenant", name, f"the model lost it: `tenants.remove({name!r})` ends it")

    # Train ------------------------------------------------------------------------------------------------

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
            TrainError: there is no such loss or tenant, or an example is wrong (BS731), or the gradient of
                shared tensors that train is not finite (BS750). Nothing was added.
        """
        name = "cross_entropy" if callable(loss) else loss
        if name not in LOSSES:
            raise _wrong("loss", loss, f"the losses are {', '.join(LOSSES)}")
        for example in examples:
            self._check_example(example, name)
            if backward or example.tenant is not None:
                self._check_tenant(example.tenant)
        if callable(loss):
            leaves = self.forward_backward(examples, backward=False).logprobs
            total = loss([leaf.requires_grad_() for leaf in leaves], examples)
            gradients = torch.autograd.grad(total, leaves)
            weighted = []
            for example, gradient in zip(examples, gradients, strict=True):
                weighted.append(replace(example, weights=(-gradient).tolist()))
            examples = weighted
        measure = partial(LOSSES[name], **settings)
        return self._pass(examples, measure, backward=backward)

    def _pass(
        self, examples: Sequence[Example], measure: Callable[..., Tensor], *, backward: bool
    ) -> Pass:
        """Run the forwards of checked examples, and add their gradients: all of them, or none."""
        parameters = self.bank.parameters
        before = [parameter.grad for parameter in parameters]
        mode = self.model.training
        logprobs = dict[int, Tensor]()
        losses = {example.tenant: 0.0 for example in examples if example.tenant is not None}
        try:
            for parameter in parameters:
                parameter.grad = None
            self.model.train(backward)  # A mixed batch has gradients in training mode alone.
            for numbers in self._passes(examples):
                rows = [examples[number] for number in numbers]
                with torch.set_grad_enabled(backward):
                    result = self.run(_collated(rows), measure)
                if backward and result.losses.requires_grad:
                    result.losses.sum().backward()
                values = result.losses.tolist()
                for index, (number, row) in enumerate(zip(numbers, rows, strict=True)):
                    part = result.logprobs[index, : len(row.labels)]
                    logprobs[number] = part.detach().cpu()
                    if row.tenant is not None:
                        losses[row.tenant] += values[index]
            refused = self._add_to(before)
        except BaseException:
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = gradient
            raise
        finally:
            self.model.train(mode)
        if backward:
            self._waiting |= losses.keys() - refused
        return Pass([logprobs[number] for number in range(len(examples))], losses, tuple(refused))

    def _passes(self, examples: Sequence[Example]) -> list[list[int]]:
        """Divide examples into forwards, by number: of one tenant each with ``apart``."""
        groups = dict[str | None, list[int]]()
        for number, example in enumerate(examples):
            groups.setdefault(example.tenant if self.apart else None, []).append(number)
        passes = []
        for numbers in groups.values():
            rows = [examples[number].encoded() for number in numbers]
            cuts = cut(rows, self.at_once)
            passes += [[numbers[index] for index in some] for some in cuts]
        return passes

    def _add_to(self, before: Sequence[Tensor | None]) -> list[str]:
        """Add the finite new gradients to those from before; return the tenants with others."""
        bank = self.bank
        bad = list[int]()
        if bank.own.grad is not None:
            finite = bank.own.grad.isfinite().all(1)
            bad = [row for row, is_finite in enumerate(finite.tolist()) if not is_finite]
            bank.own.grad = torch.where(finite.unsqueeze(1), bank.own.grad, 0)
        if bank.common.grad is not None and not bank.common.grad.isfinite().all():
            kept = "nothing was added: tenants share tensors that train"
            raise TrainError(codes.NOT_FINITE(what="gradient", step=0, value="nan", kept=kept))
        for parameter, gradient in zip(bank.parameters, before, strict=True):
            if gradient is not None and parameter.grad is None:
                parameter.grad = gradient
            elif gradient is not None:
                parameter.grad = gradient + cast(Tensor, parameter.grad)
        return [self.names[row] for row in bad]

    @uninterrupted()
    def step(
        self,
        *tenants: str,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_norm: float = 0.0,
    ) -> dict[str, float]:
        """Do a step of AdamW for some tenants, each with its gradient, and clear these gradients.

        Args:
            *tenants: by default all with a gradient, and the shared tensors if they train.
            learning_rate: of this step.
            betas, eps, weight_decay: of AdamW.
            max_norm: to which each tenant's gradient is clipped; 0 does not clip.

        Returns:
            The norm of each tenant's gradient, before clipping.

        Raises:
            TrainError: a number is out of its range, a tenant has no gradient (BS731), or a gradient is not
                finite (BS750). Nothing has changed.
        """
        _check_number("learning_rate", learning_rate, least=0.0, most=HIGHEST_RATE)
        for beta in betas:
            _check_number("betas", beta, least=0.0, below=1.0)
        _check_number("eps", eps, least=0.0)
        _check_number("weight_decay", weight_decay, least=0.0)
        _check_number("max_norm", max_norm, least=0.0)
        names = list(tenants) or sorted(self._waiting)
        for name in names:
            self._check_tenant(name)
            if name not in self._waiting:
                reason = "it has no gradient: `forward_backward` comes first"
                raise _wrong("tenant", name, reason)
        rows = {name: self.names.index(name) for name in names}
        bank = self.bank
        for parameter in bank.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradient = cast(Tensor, bank.own.grad)
        norms = {name: float(gradient[row].norm()) for name, row in rows.items()}
        for name, norm in norms.items():
            if not isfinite(norm):
                kept = f"`{name}` and all others stay as they are"
                raise TrainError(codes.NOT_FINITE(what="gradient", step=0, value="inf", kept=kept))
        self.optimizer.settings = Settings(betas, eps, weight_decay, max_norm)
        self.optimizer.rates = [dict.fromkeys(rows.values(), learning_rate)]
        if bank.common.numel():
            self.optimizer.rates.append({} if tenants else {0: learning_rate})
        self.optimizer.step()
        for parameter, rates in zip(bank.parameters, self.optimizer.rates, strict=True):
            cast(Tensor, parameter.grad)[list(rates)] = 0
        self._waiting -= set(names)
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

        Raises:
            TrainError: a number is out of its range, a prompt is empty, or there is no such tenant (BS731).
        """
        adapters = [tenant] * len(prompts) if tenant is None or isinstance(tenant, str) else tenant
        self._check_sampling(prompts, adapters)
        _check_whole("max_tokens", max_tokens, least=1)
        _check_number("temperature", temperature, least=0.0)
        _check_whole("top_k", top_k, least=0)
        _check_number("top_p", top_p, above=0.0, most=1.0)
        if seed is not None:
            _check_whole("seed", seed, least=0)
        model = cast(Any, self.model)
        device = model.device
        ends = model.generation_config.eos_token_id if stop is None else stop
        ends = [ends] if isinstance(ends, int) else list(ends or ())
        reads = [torch.tensor(list(prompt), device=device) for prompt in prompts]
        ids = pad_sequence(reads, batch_first=True, padding_side="left")
        ones = [torch.ones_like(read) for read in reads]
        mask = pad_sequence(ones, batch_first=True, padding_side="left")
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
            }
        mode = model.training
        model.eval()
        try:
            forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
            with forked, self.handle.rows(adapters):
                if seed is not None:
                    torch.manual_seed(seed)
                output = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max_tokens,
                    eos_token_id=ends or None,
                    pad_token_id=0,
                    return_dict_in_generate=True,
                    output_scores=True,
                    **sampling,
                )
        finally:
            model.train(mode)
        scores = torch.stack(output.scores, dim=1).float().log_softmax(-1)
        tokens = output.sequences[:, ids.shape[1] :]
        chosen = scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist()
        samples = []
        for row, logprobs in zip(tokens.tolist(), chosen, strict=True):
            stops = [index + 1 for index, token in enumerate(row) if token in ends]
            length = stops[0] if stops else len(row)
            samples.append(Sample(row[:length], logprobs[:length], stopped=bool(stops)))
        return samples

    # Save and load ----------------------------------------------------------------------------------------

    def save(self, name: str, folder: str | os.PathLike[str]) -> None:
        """Write a tenant's values, gradients and optimizer state into one file of a folder, in one step.

        The file names the plan, the library, the base and the seed of frozen tensors. If shared tensors
        train, it has them too. `model.bishare` saves tenants as adapters.

        Raises:
            TrainError: there is no such tenant (BS731), or the folder cannot be written (BS747).
        """
        self._check_tenant(name)
        path = Path(folder)
        state = {key: tensor.cpu().clone() for key, tensor in self._held(name).items()}
        base = self.handle.fingerprint()
        metadata = {
            **self._origin(),
            "base": json.dumps(None if base is None else asdict(base)),
        }
        with translate_refusals(path):
            path.mkdir(parents=True, exist_ok=True)
            replace_file(path / FILE, safetensors.save(state, metadata))

    def load(self, name: str, folder: str | os.PathLike[str], *, optimizer: bool = True) -> None:
        """Restore a tenant, bit for bit, and with it the shared tensors if they train.

        Args:
            name: of the tenant, which need not be the saved one's.
            folder: from `save`.
            optimizer: False restores the values alone, and clears gradients and the optimizer's state.

        Raises:
            TrainError: there is no such tenant (BS731), there is no such file, or it is of another plan,
                library, base or seed (BS743). Nothing has changed.
        """
        self._check_tenant(name)
        held = self._held(name)
        try:
            with safe_open(Path(folder) / FILE, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise _broken(folder, one_line(error)) from error
        for key, value in self._origin().items():
            if metadata.get(key) != value:
                raise _broken(folder, f"it is of another {key}")
        shapes = {key: tensor.shape for key, tensor in held.items()}
        if shapes != {key: tensor.shape for key, tensor in state.items()}:
            raise _broken(folder, "it is of another plan")
        self._check_base(folder, metadata.get("base", "null"))
        if not optimizer:
            for key, tensor in state.items():
                if not key.endswith(".value"):
                    state[key] = torch.zeros_like(tensor)
        self._restore(name, state)

    def _origin(self) -> dict[str, str]:
        """Return what a state belongs to: the plan, the library, and the seed of frozen tensors."""
        frozen = any(not tensor.trainable for tensor in self.plan.tensors)
        return {
            "plan": self.plan.digest,
            "library": "" if self.library is None else str(self.library.config.tensors),
            "seed": str(self.seed) if frozen else "",
        }

    def _check_base(self, folder: str | os.PathLike[str], text: str) -> None:
        """Check that a state is of the base in memory (BS743)."""
        found = self.handle.fingerprint()
        try:
            fields = json.loads(text)
            saved = None if fields is None else Fingerprint(**fields)
        except (TypeError, ValueError) as error:
            raise _broken(folder, one_line(error)) from error
        if saved is not None and found is not None and difference(saved, found):
            raise _broken(folder, "it is of another base")

    def _held(self, name: str) -> dict[str, Tensor]:
        """Return views of a tenant's values, gradients and optimizer state, and of the shared ones."""
        held = dict[str, Tensor]()
        rows = {"own": self.names.index(name), "common": 0}
        parameters = {"own": self.bank.own, "common": self.bank.common}
        for part, row in rows.items():
            parameter = parameters[part]
            if not parameter.numel():
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            held[f"{part}.value"] = parameter.detach()[row]
            held[f"{part}.gradient"] = parameter.grad[row]
            for key, tensor in self.optimizer.state[parameter].items():
                held[f"{part}.{key}"] = tensor[row]
        return held

    @uninterrupted()
    def _restore(self, name: str, state: Mapping[str, Tensor]) -> None:
        for key, tensor in self._held(name).items():
            tensor.copy_(state[key])
        if state["own.gradient"].any():
            self._waiting.add(name)
        else:
            self._waiting.discard(name)

    # Check ------------------------------------------------------------------------------------------------

    def _check_example(self, example: Example, loss: str) -> None:
        """Check the tokens and the lengths of an example (BS731)."""
        if not isinstance(example, Example):
            raise TypeError("write `[Example(tokens, tenant='acme')]` with ids of a tokenizer")
        self._check_tokens("tokens", example.tokens)
        if example.targets is not None:
            self._check_tokens("targets", example.targets)
            if len(example.targets) != len(example.tokens):
                reason = f"there are {len(example.tokens)} tokens, and each has one target"
                raise _wrong("targets", list(example.targets), reason)
        count = len(example.labels)
        if not count:
            reason = "nothing follows it: an example has two tokens, or `targets`"
            raise _wrong("tokens", list(example.tokens), reason)
        for name in ("weights", "logprobs", "advantages"):
            values = getattr(example, name)
            if values is None and name in NEEDED[loss]:
                raise _wrong(name, None, f"the loss {loss} needs one for each of {count} targets")
            if values is not None and len(values) != count:
                raise _wrong(name, list(values), f"the example has {count} targets")

    def _check_tokens(self, name: str, tokens: Sequence[int]) -> None:
        if isinstance(tokens, str):
            raise TypeError("write `[Example(tokens, tenant='acme')]` with ids of a tokenizer")
        vocabulary = cast(Any, self.model).get_input_embeddings().num_embeddings
        for token in tokens:
            whole = isinstance(token, Integral) and not isinstance(token, bool)
            if not whole or not 0 <= token < vocabulary:
                raise _wrong(name, token, f"a token is a whole number from 0 to {vocabulary - 1}")

    def _check_sampling(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[str | None]
    ) -> None:
        if not prompts:
            raise _wrong("prompts", [], "there is none to continue")
        for prompt in prompts:
            self._check_tokens("prompts", prompt)
            if not prompt:
                raise _wrong("prompts", [], "a prompt has one token at least")
        if len(adapters) != len(prompts):
            raise _wrong("tenant", list(adapters), f"there are {len(prompts)} prompts")
        for name in adapters:
            if name is not None:
                self._check_tenant(name)


def _wrong(name: str, value: object, reason: str) -> TrainError:
    help = "docs/tinker-server.md shows the calls in order"
    return TrainError(codes.WRONG_VALUE(name=name, value=value, reason=reason, help=help))


def _broken(folder: str | os.PathLike[str], reason: str) -> TrainError:
    return TrainError(codes.BROKEN_CHECKPOINT(folder=folder, reason=reason))


def _check_whole(name: str, value: object, *, least: int) -> None:
    """Check that a value is a whole number, and not less than another (BS731)."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise _wrong(name, value, f"it is a whole number from {least} on")


def _check_number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Check that a value is finite and in its range (BS731)."""
    if not isinstance(value, Real) or isinstance(value, bool) or not isfinite(value):
        raise _wrong(name, value, "it is a finite number")
    if least is not None and value < least:
        raise _wrong(name, value, f"the least is {least:g}")
    if above is not None and value <= above:
        raise _wrong(name, value, f"it is more than {above:g}")
    if most is not None and value > most:
        raise _wrong(name, value, f"the most is {most:g}")
    if below is not None and value >= below:
        raise _wrong(name, value, f"it is less than {below:g}")


def _collated(rows: Sequence[Example]) -> MicroBatch:
    """Pad examples on the right."""
    values = dict[str, Tensor]()
    for name in ("weights", "logprobs", "advantages"):
        parts = []
        for row in rows:
            part = getattr(row, name)
            if part is None and name == "weights":
                part = [1.0] * len(row.labels)
            if part is not None:
                parts.append(torch.as_tensor(part, dtype=torch.float32))
        if len(parts) == len(rows):
            values[name] = pad_sequence(parts, batch_first=True)
    inputs = Collator(0).predicting([row.encoded() for row in rows])
    return MicroBatch(inputs, [row.tenant for row in rows], values)
