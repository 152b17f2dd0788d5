"""Cache the hidden states below the first adapted block, computed once for each example.

Blocks below all adapters never change, so the hidden states of an example are the same in every epoch. With
an adapter on the last two of thirty blocks, a step runs only two blocks.

All states are computed before the first step, in batches that depend only on the examples, so a resumed run
has the same states. Results equal those without the cache: bit for bit if the steps use the same batches,
as steps with all examples of several tasks do. Otherwise they differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bishare_dsl.models.site import block_of
from bishare_dsl.plan import Plan
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.tasks import Steps

MEMORY = 2**31
"""The largest number of bytes of hidden states; with more, all blocks run."""

Row = tuple[int, ...]
"""The token ids of an example."""


@contextmanager
def cached_trunk(
    model: PreTrainedModel,
    plan: Plan,
    steps: Steps,
    context: Callable[[], AbstractContextManager[Any]],
    reporter: Reporter,
) -> Iterator[bool]:
    """Cache the hidden states below the first adapted block within a block of code; yield whether it is so.

    Caching is off if examples occur only once, or if lower blocks train. With a note, it is also off if a
    trial shows that the upper blocks need more than the hidden states or that these differ in training,
    such as with dropout, or if the states of all examples exceed `MEMORY`.

    Args:
        model: the adapted model, on its device.
        plan: of all running adapters.
        steps: the steps with the examples.
        context: a context for running the model, such as autocast.
        reporter: reports what is cached.
    """
    repeats = max(map(steps.epochs_of, range(len(steps.tasks)))) > 1
    trunk = Trunk.of(model, plan) if repeats else None
    prevented_by = "none are below"
    with ExitStack() as stack:
        if trunk is not None:
            below = f"blocks 0 to {len(trunk.below) - 1}"
            with context(), ExitStack() as trial:
                trial.enter_context(trunk.installed())
                prevented_by = "" if trunk.fits(model) else "a trial of their states failed"
                if not prevented_by and (size := trunk.bytes_of(steps)) > MEMORY:
                    prevented_by = f"their states need {size / 2**30:.1f} GiB"
                if prevented_by:
                    reporter.note(f"{below} run again in each epoch: {prevented_by}")
                else:
                    reporter.note(f"computing {below} once for each example ...")
                    trunk.fill(_batches(steps))
                    stack.enter_context(trial.pop_all())
        yield not prevented_by


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module run another forward inside the block."""
    own = {name: value for name, value in vars(module).items() if name == "forward"}
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        vars(module).update(own)


def _batches(steps: Steps) -> Iterator[Mapping[str, Any]]:
    """Yield all examples as model inputs, in the passes of a step if it has all examples."""
    for part in ("examples", "held_out"):
        rows = [(i, [*getattr(task, part)]) for i, task in enumerate(steps.tasks)]
        yield from (micro_batch.inputs for micro_batch in steps.passes(rows))


class _EnoughError(Exception):
    """Raised to stop a forward once the states to cache are computed."""


class Trunk:
    """The blocks below all adapters.

    Args:
        owner: the module that calls the blocks.
        below: the blocks.
        first: the first block above them.
    """

    def __init__(self, owner: nn.Module, below: Sequence[nn.Module], first: nn.Module) -> None:
        self._owner = owner
        self.below = below
        self._first = first
        self._states: dict[Row, Tensor] = {}  # (tokens, width) each, on the CPU.
        self._filling: list[Row] | None = None  # The rows of the batch to cache.
        self._known: Tensor | None = None  # The states of the batch that runs.
        self.hits = 0
        """The number of batches that used cached states."""

    @classmethod
    def of(cls, model: PreTrainedModel, plan: Plan) -> Trunk | None:
        """Return the trunk of an adapted model, if there are blocks below all adapters."""
        adapted = {site for site, terms in plan.terms_of.items() if terms}
        adapted |= {parameter.parameter for parameter in plan.trained}
        adapted_blocks = [block_of(path) for path in adapted]
        numbers = [int(block[1]) for block in adapted_blocks if block]
        name, *others = {block and block[0] for block in adapted_blocks}
        if others or name is None:  # Such as an embedding, a head.
            return None
        owner = model.get_submodule(name.rpartition(".")[0])
        blocks = model.get_submodule(name)
        number = min(numbers)
        # The trial may miss it, as it leaves whole blocks out at random.
        drops = getattr(owner, "layerdrop", False)
        if not number or drops or not isinstance(blocks, nn.ModuleList):
            return None
        return cls(owner, [*blocks[:number]], blocks[number])

    def bytes_of(self, steps: Steps) -> int:
        """Return the bytes of the states of all examples, once others are cached."""
        sets = (rows for task in steps.tasks for rows in (task.examples, task.held_out))
        states = next(iter(self._states.values()))
        return states[0].nbytes * sum(len(row["input_ids"]) for rows in sets for row in rows)

    @contextmanager
    def installed(self) -> Iterator[Trunk]:
        """Let the blocks return cached states within a block of code."""
        with ExitStack() as stack:
            for hook in (
                self._owner.register_forward_pre_hook(self._begin, with_kwargs=True),
                self._owner.register_forward_hook(self._end, always_call=True),
                self._first.register_forward_pre_hook(self._store, with_kwargs=True),
            ):
                stack.callback(hook.remove)
            for block in self.below:
                stack.enter_context(replaced_forward(block, partial(self._pass_on, block.forward)))
            yield self

    def _pass_on(self, forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Run a block only if the states above it are not known."""
        return forward(*arguments, **keywords) if self._known is None else self._known

    @torch.no_grad()
    def fill(self, batches: Iterable[Mapping[str, Any]], mode: bool = False) -> None:
        """Compute the hidden states of all examples, without higher blocks; ``mode`` is that of training."""
        training = self._owner.training
        device = next(self._owner.parameters()).device
        self._owner.train(mode)
        self._filling = []
        try:
            for batch in batches:
                inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
                with suppress(_EnoughError):
                    self._owner(**inputs, use_cache=False)
        finally:
            self._owner.train(training)
            self._filling = None

    @torch.no_grad()
    def fits(self, model: PreTrainedModel) -> bool:
        """Test on a few tokens whether the model's output from cached states of training is the same."""
        some = torch.Generator().manual_seed(0)
        vocabulary: Any = model.get_input_embeddings().num_embeddings
        ids = torch.randint(vocabulary, (2, 6), generator=some).to(model.device)
        mask = torch.ones_like(ids)
        mask[0, 3:] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        training = model.training
        model.eval()
        try:
            first = model(**inputs, use_cache=False).logits
            # Different tokens come last, so that blocks retain no state of the tested tokens.
            last = {**inputs, "input_ids": ids.flip(0, 1)}
            with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
                self.fill([inputs, last], mode=True)
            second = model(**inputs, use_cache=False).logits
        except Exception:  # noqa: BLE001 - the model is run as it is, and says what is wrong
            return False
        finally:
            model.train(training)
        return self.hits > 0 and torch.equal(first[mask.bool()], second[mask.bool()])

    def _begin(self, _: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        rows = [] if arguments else _rows_of({**keywords})
        self._known = None
        if self._filling is not None:
            self._filling = rows
        elif rows and all(row in self._states for row in rows):
            ids: Tensor = keywords["input_ids"]
            parts = [self._states[row] for row in rows]
            states = parts[0].new_zeros(*ids.shape, parts[0].shape[1])
            for i, part in enumerate(parts):
                states[i, : len(part)] = part
            self._known = states.to(ids.device)
            self.hits += 1

    def _store(self, _: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        if self._filling is None:
            return
        states = arguments[0] if arguments else keywords["hidden_states"]
        for row, row_states in zip(self._filling, states, strict=False):
            if row not in self._states:
                kept = row_states[: len(row)].detach().to("cpu", copy=True)
                # The last token predicts nothing: a batch may leave it out.
                self._states[row], self._states[row[:-1]] = kept, kept[:-1]
        raise _EnoughError

    def _end(self, *_: Any) -> None:
        self._known = None


def _rows_of(inputs: dict[str, Any]) -> list[Row]:
    """Return the token ids of each row of a batch; empty if other inputs affect the hidden states."""
    ids = inputs.pop("input_ids", None)
    mask = inputs.pop("attention_mask", None)
    others = any(isinstance(v, Tensor) for v in inputs.values()) or inputs.get("past_key_values")
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or others:
        return []
    if ids.dim() != 2 or mask.shape != ids.shape or (mask.diff(dim=1) > 0).any():
        return []  # Padded on the left, or masked in between.
    return [tuple(row[:n]) for row, n in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]
