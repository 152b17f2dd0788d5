"""The protocol of PEFT's method_comparison/MetaMathQA, for its methods and for bishare's specs.

Train on questions with answers, using AdamW with a cosine schedule. Generate answers to test questions, and
count those with the correct final number. Measure memory, time, file size, and the loss of quality on other
texts ("forgetting").
"""

from __future__ import annotations

import platform
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from harness.result import machine
from torch.nn import functional as F
from transformers import get_cosine_schedule_with_warmup, set_seed

from comparison.data import Rows, right
from comparison.methods import adapt, parameters, save

BUCKET = 20
"""Batches that are sorted by length together."""

PACKAGES = ("bishare", "peft", "transformers", "torch")


@dataclass
class Training:
    """The parameters of the comparison, by its own names."""

    model_id: str = "meta-llama/Llama-3.2-3B"
    dtype: str = "bfloat16"
    max_seq_length: int = 768
    batch_size: int = 4
    batch_size_eval: int = 50
    max_steps: int = 5000
    eval_steps: int = 250
    query_template: str = "Question: {query} Think step by step.\nAnswer:"
    seed: int = 0
    grad_norm_clip: float = 1.0
    optimizer_kwargs: dict[str, float] = field(
        default_factory=lambda: {"lr": 1e-4, "weight_decay": 0.1}
    )
    generation_kwargs: dict[str, int] = field(
        default_factory=lambda: {"max_length": 800, "max_new_tokens": 300}
    )


class Meter:
    """Memory beyond what there was at the start: of an accelerator, or the process's largest without one."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.log: list[int] = []
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        self.start = torch.cuda.max_memory_reserved() if self.cuda else 0

    def note(self) -> None:
        if self.cuda:
            self.log.append(torch.cuda.memory_reserved() - self.start)

    def found(self) -> dict[str, int | None]:
        if not self.cuda:
            largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            return {"accelerator_memory_max": None, "host_memory_max": largest}
        return {
            "accelerator_memory_reserved_avg": int(statistics.fmean(self.log)),
            "accelerator_memory_max": torch.cuda.max_memory_reserved() - self.start,
            "accelerator_memory_reserved_99th": sorted(self.log)[int(0.99 * (len(self.log) - 1))],
        }


def batches(tokens: list[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Rows in order, over and over, of which those of some batches are sorted by length, longest first."""
    while True:
        for start in range(0, len(tokens), size * BUCKET):
            bucket = sorted(tokens[start : start + size * BUCKET], key=len, reverse=True)
            yield from (bucket[at : at + size] for at in range(0, len(bucket), size))


def padded(rows: Sequence[list[int]], pad: int, *, left: bool = False) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids, mask = torch.full((2, len(rows), width), pad), torch.zeros(len(rows), width)
    for row, tokens in enumerate(rows):
        place = slice(width - len(tokens), None) if left else slice(len(tokens))
        ids[0, row, place], mask[row, place] = torch.tensor(tokens), 1
    return {"input_ids": ids[0], "attention_mask": mask.long()}


def labelled(rows: Sequence[list[int]], pad: int) -> dict[str, torch.Tensor]:
    """A batch to learn from: of the padding only the first place, so that the model learns to end."""
    batch = padded(rows, pad)
    labels = batch["input_ids"].clone()
    for row, tokens in enumerate(rows):
        labels[row, len(tokens) + 1 :] = -100
    return batch | {"labels": labels}


class Run:
    """One experiment, from the base to the result."""

    def __init__(
        self,
        name: str,
        experiment: dict[str, Any],
        training: Training,
        base: Any,
        tokenizer: Any,
        rows: Rows,
    ) -> None:
        self.name, self.experiment, self.training, self.rows = name, experiment, training, rows
        self.tokenizer = tokenizer
        self.pad = (
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )
        self.device = base.device
        set_seed(training.seed)
        self.meter = Meter(self.device)
        self.began, self.created = time.perf_counter(), datetime.now(UTC).replace(microsecond=0)
        self.model = adapt(experiment, base, training.seed)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"][: self.training.max_seq_length]

    def queries(self, rows: Sequence[tuple[str, str]]) -> list[str]:
        return [self.training.query_template.format(query=query) for query, _ in rows]

    def to(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    @torch.inference_mode()
    def accuracy(self, rows: Sequence[tuple[str, str]]) -> float:
        """How many answers end in the right number."""
        self.model.eval()
        size, hits = self.training.batch_size_eval, 0
        limits = self.training.generation_kwargs
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            batch = self.to(
                padded([self.encode(q) for q in self.queries(part)], self.pad, left=True)
            )
            width = batch["input_ids"].shape[1]
            new = min(limits["max_new_tokens"], limits["max_length"] - width)
            written = self.model.generate(
                **batch, max_new_tokens=new, do_sample=False, pad_token_id=self.pad
            )
            texts = self.tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
            hits += sum(right(text, answer) for text, (_, answer) in zip(texts, part, strict=True))
        self.model.train()
        return hits / len(rows)

    @torch.inference_mode()
    def loss_on_texts(self) -> float:
        """The mean loss of a token in texts that have nothing to do with the task."""
        self.model.eval()
        total, count, size = 0.0, 0, self.training.batch_size
        for start in range(0, len(self.rows.texts), size):
            tokens = [self.encode(text) for text in self.rows.texts[start : start + size]]
            batch = self.to(padded([row for row in tokens if len(row) > 1], self.pad))
            logits = self.model(**batch).logits[:, :-1].float()
            seen = batch["attention_mask"][:, 1:].bool()
            loss = F.cross_entropy(logits[seen], batch["input_ids"][:, 1:][seen], reduction="sum")
            total, count = total + loss.item(), count + int(seen.sum())
        self.model.train()
        return total / count

    def train(self) -> dict[str, Any]:
        """All steps; what the result has of them."""
        training = self.training
        learnt = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learnt, **training.optimizer_kwargs)
        schedule = get_cosine_schedule_with_warmup(
            optimizer, int(0.1 * training.max_steps), training.max_steps
        )
        before = self.loss_on_texts()
        answers = [answer for _, answer in self.rows.train]
        texts = [q + a for q, a in zip(self.queries(self.rows.train), answers, strict=True)]
        tokens = [self.encode(text) for text in texts[: training.max_steps * training.batch_size]]
        feed = batches(tokens, training.batch_size)
        losses: list[float] = []
        metrics: list[dict[str, Any]] = []
        seen, evaluating, began = 0, 0.0, time.perf_counter()
        self.model.train()
        for step in range(1, training.max_steps + 1):
            rows = next(feed)
            seen += sum(len(row) + 1 for row in rows)
            loss = self.model(**self.to(labelled(rows, self.pad))).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learnt, training.grad_norm_clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            self.meter.note()
            if step % training.eval_steps == 0:
                paused = time.perf_counter()
                metrics.append(
                    {
                        "step": step,
                        "valid accuracy": self.accuracy(self.rows.valid),
                        "train loss": statistics.fmean(losses[-training.eval_steps :]),
                        "train samples": step * training.batch_size,
                    }
                )
                evaluating += time.perf_counter() - paused
        trained = time.perf_counter() - began - evaluating
        metrics.append(
            {
                "step": training.max_steps,
                "test accuracy": self.accuracy(self.rows.test),
                "train loss": statistics.fmean(losses[-training.eval_steps :]),
                "train samples": training.max_steps * training.batch_size,
                "train total tokens": seen,
                "forgetting": self.loss_on_texts() - before,
            }
        )
        return {"train_time": trained, "status": "success", "metrics": metrics}

    def result(self) -> dict[str, Any]:
        """Train and test; the result as PEFT's comparison stores it."""
        found = self.train()
        with tempfile.TemporaryDirectory() as scratch:
            size = save(self.experiment, self.model, Path(scratch))
        trained, every = parameters(self.model)
        gpu = torch.cuda.get_device_name(0) if self.device.type == "cuda" else None
        return {
            "run_info": {
                "created_at": self.created.isoformat(),
                "total_time": time.perf_counter() - self.began,
                "experiment_name": self.name,
                "train_config": asdict(self.training),
                "peft_config": self.experiment.get("peft"),
                "bishare_config": {k: v for k, v in self.experiment.items() if k != "peft"} or None,
                "error_msg": "",
            },
            "train_info": {
                **self.meter.found(),
                "file_size": size,
                "num_trainable_params": trained,
                "num_total_params": every,
                **found,
            },
            "meta_info": {
                "rows": {k: len(v) for k, v in asdict(self.rows).items()},
                "package_info": {f"{name}-version": version(name) for name in PACKAGES},
                "system_info": {
                    "system": platform.system(),
                    "machine": platform.machine(),
                    "processor": machine()["cpu"],
                    "accelerator": gpu,
                },
                "pytorch_info": torch.__config__.show(),
            },
        }


def shuffled(rows: list[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    """In an order that the seed fixes."""
    order = list(rows)
    random.Random(seed).shuffle(order)
    return order
