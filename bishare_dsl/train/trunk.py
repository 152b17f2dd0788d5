"""Cache the hidden states below the first adapted block, computed once for each example.

Blocks below all adapters never change, so the hidden states of an example are the same in every epoch. With
an adapter on the last two of thirty blocks, a step runs only two blocks.

All states are computed before the first step, in batches that depend only on the examples, so a resumed run
has the same states. Results equal those without the cache: bit for bit if the steps use the same batches,
as steps with all examples of several tasks do. Otherwise they differ by rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from io import BufferedWriter
from itertools import islice
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bishare_dsl.plan import Plan
    from bishare_dsl.train.reporter import Reporter
    from bishare_dsl.train.tasks import Steps

MEMORY = 2**31
"""The largest number of bytes of hidden states in memory. More go into a temporary file."""

_FILE = "states"
"""Its name."""

_AT_ONCE = 4096
"""The number of rows that are sorted into batches together."""

_TRIED = (2, 6)
"""Rows and tokens of the trial that precedes caching."""

Row = tuple[int, ...]
"""The token ids of an example."""


@contextmanager
def cached_trunk(
    model: PreTrainedModel,
    plans: Iterable[Plan],
    steps: Steps,
    context: Callable[[], AbstractContextManager[Any]],
    reporter: Reporter,
    prevented_by: str | None = None,
) -> Iterator[None]:
    """Cache the hidden states below the first adapted block within a block of code.

    Caching is off if examples occur only once, or if lower blocks train. With a note, it is also off if a
    trial shows that the upper blocks need more than the hidden states or that these differ in training,
    such as with dropout, or if the states of all examples exceed `MEMORY` and the disk has no room for them.

    Args:
        model: the adapted model, on its device.
        plans: the plans of all running adapters.
        steps: the steps with the examples.
        context: a context for running the model, such as autocast.
        reporter: reports what is cached.
        prevented_by: a setting of the run that excludes caching, for the note.
    """
    repeats = max(map(steps.epochs_of, range(len(steps.tasks)))) > 1
    blocks = _blocks_below(model, [*plans]) if repeats else None
    below = "" if blocks is None else f"blocks 0 to {len(blocks[1]) - 1}"
    if blocks is not None and prevented_by is not None:
        reporter.note(f"with {prevented_by}, {below} run again in each epoch")
        blocks = None
    with ExitStack() as stack:
        if blocks is not None:
            trunk = Trunk(*blocks)
            with context(), ExitStack() as trial:
                trial.enter_context(trunk.installed())
                fits = trunk.fits(model)
                size = trunk.bytes_per_token * _tokens(steps) if fits else 0
                need, to = f"their states need {size / 2**30:.1f} GiB", ""
                if not fits:
                    prevented_by = "a trial of their states failed"
                elif size > MEMORY:
                    scratch = TemporaryDirectory(prefix="bishare-", ignore_cleanup_errors=True)
                    folder = Path(trial.enter_context(scratch))
                    to = f", into {size / 2**30:.1f} GiB in {folder}"
                    if size > disk_usage(folder).free:
                        prevented_by = f"{need}, more than is free in {folder.parent}"
                    else:
                        trunk.spill(folder / _FILE)
                if prevented_by is None:
                    reporter.note(f"computing {below} once for each example{to} ...")
                    try:
                        trunk.fill(_batches(steps))
                    except OSError as error:  # Of the file.
                        prevented_by = f"{need}, and writing them failed: {error.strerror}"
                    else:
                        stack.enter_context(trial.pop_all())
                if prevented_by is not None:
                    reporter.note(f"{below} run again in each epoch: {prevented_by}")
        yield


def _tokens(steps: Steps) -> int:
    """Count the tokens of all examples; tasks that differ in their seeds have the same examples."""
    sets = {id(rows): rows for task in steps.tasks for rows in (task.examples, task.held_out)}
    return sum(len(row["input_ids"]) for rows in sets.values() for row in rows)


def _batches(steps: Steps) -> Iterator[Mapping[str, Any]]:
    """Yield all examples as model inputs, in the passes of a step if it has all examples."""
    parts = [
        (i, rows) for i, task in enumerate(steps.tasks) for rows in (task.examples, task.held_out)
    ]
    few = sum(len(rows) for _, rows in parts[::2]) <= _AT_ONCE
    sets = [parts[::2]] if few else [[part] for part in parts[::2]]
    for chosen in [*sets, *([part] for part in parts[1::2])]:
        for start in range(0, max(len(rows) for _, rows in chosen), _AT_ONCE):
            cut = [(i, [*islice(rows, start, start + _AT_ONCE)]) for i, rows in chosen]
            for micro_batch in steps.passes(cut):
                yield micro_batch.inputs


def _blocks_below(
    model: PreTrainedModel, plans: Sequence[Plan]
) -> tuple[nn.Module, list[nn.Module], nn.Module] | None:
    """Return the module that calls the blocks, those below all adapters, and the first adapted block."""
    adapted = {site for plan in plans for site, terms in plan.terms_of.items() if terms}
    adapted |= {parameter.parameter for plan in plans for parameter in plan.trained}
    places = set()
    for path in adapted:
        words, place = path.split("."), None
        for i, word in enumerate(words):
            if word.isdecimal() and isinstance(_module(model, words[:i]), nn.ModuleList):
                place = ".".join(words[:i]), int(word)
                break
        if place is None:  # An embedding, a head or a norm.
            return None
        places.add(place)
    if len({name for name, _ in places}) != 1:
        return None
    name, first = min(places)
    blocks: Any = model.get_submodule(name)
    owner = model.get_submodule(name.rpartition(".")[0])
    below = list(blocks[:first])
    # The trial may miss it, as it leaves whole blocks out at random.
    return (
        None if not below or getattr(owner, "layerdrop", False) else (owner, below, blocks[first])
    )


def _module(model: nn.Module, words: Sequence[str]) -> nn.Module | None:
    try:
        return model.get_submodule(".".join(words))
    except AttributeError:
        return None


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
        self._owner, self._below, self._first = owner, below, first
        self._states: dict[Row, Tensor] = {}  # (tokens, width) each, on the CPU.
        self._file: BufferedWriter | None = None
        self._written: list[Row] = []  # Of the file, in its order.
        self._rows: list[Row] = []  # Of the batch whose states are cached.
        self._filling = False
        self._known: Tensor | None = None
        self._form = 0  # Length of a block's output tuple; 0 for a tensor.
        self.hits = 0
        """The number of batches that used cached states."""

    @property
    def bytes_per_token(self) -> int:
        """The bytes of the states of a token, once some are cached."""
        states = next(iter(self._states.values()))
        return states.nbytes // len(states)

    def spill(self, path: Path) -> None:
        """Write the states that are computed from here on into a new file."""
        self._file = path.open("wb")

    def _map(self, file: BufferedWriter) -> None:
        """Map the file into memory. On POSIX it has no name from here on, and ends with the process."""
        file.close()
        like, lengths = next(iter(self._states.values())), [*map(len, self._written)]
        size = sum(lengths) * like.shape[1]
        states = torch.from_file(file.name, shared=False, size=size, dtype=like.dtype)
        parts = states.view(-1, like.shape[1]).split(lengths)
        self._states |= zip(self._written, parts, strict=True)
        with suppress(OSError):
            Path(file.name).unlink()

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
            for number, block in enumerate(self._below):
                self._replace(stack, block, is_first=number == 0)
            yield self

    def _replace(self, stack: ExitStack, block: nn.Module, *, is_first: bool) -> None:
        forward, own = block.forward, "forward" in block.__dict__

        def pass_on(hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Any:
            if self._known is None:
                output = forward(hidden_states, *arguments, **keywords)
                self._form = len(output) if isinstance(output, tuple) else 0
                return output
            states = self._known if is_first else hidden_states
            return (states, *[None] * (self._form - 1)) if self._form else states

        cast(Any, block).forward = pass_on

        def restore() -> None:
            if own:
                cast(Any, block).forward = forward
            else:
                del block.__dict__["forward"]

        stack.callback(restore)

    @torch.no_grad()
    def fill(self, batches: Iterable[Mapping[str, Any]], mode: bool = False) -> None:
        """Compute the hidden states of all examples, without higher blocks; ``mode`` is that of training."""
        training, device = self._owner.training, next(self._owner.parameters()).device
        self._owner.train(mode)
        self._filling = True
        try:
            for batch in batches:
                inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
                with suppress(_EnoughError):
                    self._owner(**inputs, use_cache=False)
            if self._file is not None:
                self._map(self._file)
        finally:
            if self._file is not None:
                with suppress(OSError):  # Of a full disk, which Python would report later.
                    self._file.close()
            self._owner.train(training)
            self._filling = False

    @torch.no_grad()
    def fits(self, model: PreTrainedModel) -> bool:
        """Test on a few tokens whether the model's output from cached states of training is the same."""
        count, length = _TRIED
        vocabulary: Any = model.get_input_embeddings().num_embeddings
        drawn = torch.randint(
            vocabulary, (count, length), generator=torch.Generator().manual_seed(0)
        )
        mask = torch.ones_like(drawn)
        mask[0, length // 2 :] = 0
        inputs = {"input_ids": drawn.to(model.device), "attention_mask": mask.to(model.device)}
        training = model.training
        model.eval()
        try:
            first = model(**inputs, use_cache=False).logits
            # Different tokens come last, so that blocks retain no state of the tested tokens.
            last = {**inputs, "input_ids": inputs["input_ids"].flip(0, 1)}
            with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
                self.fill([inputs, last], mode=True)
            second = model(**inputs, use_cache=False).logits
        except Exception:  # noqa: BLE001 - the model is run as it is, and says what is wrong
            return False
        finally:
            model.train(training)
        learned = mask.bool()
        return self.hits > 0 and torch.equal(first[learned], second[learned])

    def _begin(self, owner: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        names = inspect.signature(owner.forward).parameters
        keywords = {**dict(zip(names, arguments, strict=False)), **keywords}
        rows = _rows_of(keywords)
        self._rows, self._known = rows if self._filling else [], None
        if not self._filling and rows and all(row in self._states for row in rows):
            ids: Tensor = keywords["input_ids"]
            parts = [self._states[row] for row in rows]
            states = parts[0].new_zeros(*ids.shape, parts[0].shape[1])
            for i, part in enumerate(parts):
                states[i, : len(part)] = part
            self._known = states.to(ids.device)
            self.hits += 1

    def _store(self, _: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        if not self._filling:
            return
        states = arguments[0] if arguments else keywords.get("hidden_states")
        if isinstance(states, Tensor):
            for row, row_states in zip(self._rows, states, strict=False):
                if row not in self._states:
                    part = row_states[: len(row)].detach().to("cpu", copy=True).contiguous()
                    if self._file is not None:
                        self._file.write(part.view(torch.uint8).numpy().data)
                        self._written.append(row)
                        part = part[:0].clone()
                    self._states[row] = part
        raise _EnoughError

    def _end(self, *_: Any) -> None:
        self._rows, self._known = [], None


def _rows_of(inputs: dict[str, Any]) -> list[Row]:
    """Return the token ids of each row of a batch; empty if other inputs affect the hidden states."""
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    others = {name: v for name, v in inputs.items() if name not in ("input_ids", "attention_mask")}
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        return []
    if any(isinstance(value, Tensor) for value in others.values()) or others.get("past_key_values"):
        return []
    rows = ids.tolist()
    if mask is None:
        return [tuple(row) for row in rows]
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        return []
    lengths = [sum(row) for row in mask.tolist()]
    padded = [[1] * n + [0] * (ids.shape[1] - n) for n in lengths]
    if padded != mask.tolist():
        return []
    return [tuple(row[:n]) for row, n in zip(rows, lengths, strict=True)]
