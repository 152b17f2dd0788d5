"""Send the adapter, not merged weights, to the vLLM that generates the rollouts of TRL's trainers.

    from bishare_dsl.integrations.trl import adapter_sync

    trainer = adapter_sync(GRPOTrainer)(
        model=base, peft_config=BishareConfig(spec="tiny_lora"), args=GRPOConfig(use_vllm=True, ...), ...
    )

docs/adapter-sync.md has the servers' options.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch  # Replaces a name of a module for the time of a block.

from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
from peft import LoraConfig
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from bishare_dsl.adapted.handle import Handle
from bishare_dsl.convert.effective import check_linear
from bishare_dsl.convert.peft import VLLM_RANKS
from bishare_dsl.diagnostics import AdapterError, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.diagnostics.codes.verify import ENGINE_IS_BASE, NOT_COLOCATED
from bishare_dsl.models.hooks import is_sharded_tensor
from bishare_dsl.serve.vllm.folder import check_outside
from bishare_dsl.train import TrainError
from bishare_dsl.verify.server import TEXTS, Server

_LIMIT = {"max_lora_rank": VLLM_RANKS[-1]}
_MERGES = "start vLLM in compact mode, or leave out `adapter_sync`: TRL then merges the adapter"
_START = "start it with `--enable-lora`, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"


def adapter_sync(
    trainer: type[Any], *, servers: Sequence[str] = (), check_every: int = 10
) -> type[Any]:
    """Return a trainer class of TRL that sends the adapter alone to vLLM, under a new name each time.

    The server gets bishare's own folder in compact mode, otherwise an exact plain LoRA. Old versions are
    unloaded, and their folders, in ``output_dir/adapter-sync``, are deleted one synchronisation later. The
    servers must be able to read that folder.

    Args:
        trainer: a class that generates by `VLLMGeneration`, such as `GRPOTrainer`, or `AsyncGRPOTrainer`.
        servers: URLs of replicas behind ``vllm_server_base_url``; each gets every version.
        check_every: the versions between two checks that no server answers as the base.

    Raises:
        TypeError: the trainer generates in another way.
        AdapterError: (from the trainer's constructor) vLLM cannot apply the adapter (BS633, BS675, BS680), or
            its rank exceeds the server's limit (BS651); a setting is not for a colocated engine (BS879).
        ServerError: (from the constructor or a step) a server is gone, or refuses the adapter (BS872).
        TrainError: (from a step) a server answers as the base (BS874).
    """
    mixin = _AsyncSync if hasattr(trainer, "_sync_weight_lora") else _Sync
    _module_with(trainer, mixin.replaces)
    options = {"sync_servers": tuple(servers), "sync_check_every": check_every}
    return type(trainer.__name__, (mixin, trainer), options)


def _module_with(trainer: type[Any], name: str) -> Any:
    """Return the module of a trainer's class that uses a name.

    Raises:
        TypeError: there is none, since the trainer generates in another way.
    """
    for module in (sys.modules[cls.__module__] for cls in trainer.__mro__):
        if module.__name__ != __name__ and hasattr(module, name):
            return module
    raise TypeError(f"{trainer.__name__} does not generate by TRL's `VLLMGeneration`")


class Engine:
    """An engine for the adapter of a `PeftModel`.

    Args:
        model: the `PeftModel`, or a wrapper of it.
        info: vLLM's config, as its ``/server_info`` returns it.
        server: the server with this config; None for an engine in this process.

    Attributes:
        rank: the highest rank of the adapter as plain LoRA; 1 in compact mode.

    Raises:
        ServerError: the server takes no adapters, or has several replicas (BS872).
        AdapterError: the engine cannot apply the adapter (BS633, BS675, BS680), or not its rank (BS651).
    """

    def __init__(self, model: Any, info: dict[str, Any], server: Server | None = None) -> None:
        if server is not None:
            if info["lora_config"] is None:
                raise server.fails("serves no adapters", _START)
            if info["parallel_config"]["data_parallel_size"] > 1:
                help = "start one server for each, and name all: `servers=[...]`"
                raise server.fails("gives an adapter to one replica alone", help)
        extra = info.get("additional_config") or {}
        self._compact = any(key.startswith("bishare_") for key in extra)
        plan = _handle_of(model).plan
        terms = plan.update_terms if self._compact else plan.terms
        check_linear(terms, "send the adapter to vLLM", _MERGES)
        check_outside("the model", plan)
        rows = {path: plan.rows(path) for path in plan.terms_of}
        site = max(rows, key=lambda path: rows[path])
        self.rank = 1 if self._compact else rows[site]
        limit = info["lora_config"]["max_lora_rank"]
        if self.rank > limit:
            raise AdapterError(codes.RANK_OVER_LIMIT(rank=self.rank, site=site, limit=limit))

    def write(self, model: Any, accelerator: Any, folder: Path) -> None:
        """Write the adapter as it is now. Every process calls this, and the first writes."""
        handle = _handle_of(model)
        # All processes gather the parts of sharded tensors.
        sharded = any(map(is_sharded_tensor, handle.tensors().values()))
        if not (sharded or accelerator.is_main_process):
            return
        if self._compact:
            handle.save_pretrained(folder)
        else:
            handle.export(folder, "vllm")


def _handle_of(model: Any) -> Handle:
    base = getattr(model, "module", model).get_base_model()
    if not isinstance(handle := getattr(base, "bishare", None), Handle):
        raise AdapterError(codes.NOT_SERVED(folder="the model", what="no adapter of bishare"))
    return handle


def _new_name() -> str:
    return f"bishare-{secrets.token_hex(4)}"


def _check_colocated(settings: dict[str, Any], servers: Sequence[str]) -> None:
    """Check that no setting is for a server, or takes the base away, where each process has an engine.

    Raises:
        AdapterError: there is one (BS879).
    """
    effects = {
        "`vllm_server_base_url`": ("reaches no server", bool(settings["server_base_url"])),
        "`servers` of `adapter_sync`": ("reaches no server", bool(servers)),
        "`vllm_enable_sleep_mode`": (
            "discards the base's weights",
            bool(settings["enable_sleep_mode"]),
        ),
    }
    raise_errors(
        AdapterError,
        [
            NOT_COLOCATED(setting=setting, effect=effect)
            for setting, (effect, given) in effects.items()
            if given
        ],
    )


class Published(VLLMGeneration):  # type: ignore[misc]
    """TRL's generation, whose engine gets versions of the adapter.

    Args:
        trainer: a trainer of `adapter_sync`.
        settings: the arguments of `VLLMGeneration`.
    """

    def __init__(self, trainer: Any, **settings: Any) -> None:
        self._folder = Path(trainer.args.output_dir, "adapter-sync").resolve()
        # A server may still have the names of an earlier run. All processes use one name.
        (self._run,) = broadcast_object_list([_new_name()])
        self.version = 0
        self._names: list[str] = []
        host = f"http://{settings['server_host']}:{settings['server_port']}"
        url = (settings["server_base_url"] or host).rstrip("/")
        urls: Sequence[str] = trainer.sync_servers or [url]
        if settings["mode"] == "colocate":
            _check_colocated(settings, trainer.sync_servers)
            urls = []
        self._servers = [Server(f"{one.rstrip('/')}/v1") for one in urls]
        self._check_every = trainer.sync_check_every
        super().__init__(**settings | {"server_base_url": url})

    def _init_vllm(self) -> None:
        if self.mode == "colocate":
            self._engine = Engine(self.model, {"lora_config": _LIMIT})
            allowed = next(rank for rank in VLLM_RANKS if rank >= self._engine.rank)
            llm = partial(vllm_generation.LLM, enable_lora=True, max_lora_rank=allowed)
            with patch.object(vllm_generation, "LLM", llm):
                super()._init_vllm()
            self._generate = self.llm.generate
            return
        # TRL's own would also join a group of GPUs.
        self.vllm_client = VLLMClient(self.server_base_url, connection_timeout=self.server_timeout)
        self._base = self.vllm_client.model
        info = self.vllm_client.get_server_info()
        self._engine = Engine(self.model, info, self._servers[0])
        self.accelerator.wait_for_everyone()

    def sync_weights(self) -> None:
        """Give the engine the adapter as it is now.

        Raises:
            ServerError: a server is gone, or refuses the adapter (BS872); its older versions stay.
            TrainError: a server answers as the base (BS874).
        """
        self.version += 1
        name = f"{self._run}-v{self.version}"
        self._engine.write(self.model, self.accelerator, self._folder / name)
        self._names.append(name)
        self.accelerator.wait_for_everyone()
        if self.mode == "colocate":
            from vllm.lora.request import LoRARequest

            request = LoRARequest(name, self.version, str(self._folder / name))
            self.llm.generate = partial(self._generate, lora_request=request)
            if self.version > 1:
                self.llm.llm_engine.remove_lora(self.version - 1)
        if self.accelerator.is_main_process:
            self._publish(name)
        self.accelerator.wait_for_everyone()

    def _publish(self, name: str) -> None:
        """Load a version into every server, and name it in requests; unload all others.

        Folders are deleted one call later: one that goes while its name is loaded would stop the engine.
        """
        body = {"lora_name": name, "lora_path": str(self._folder / name)}
        for server in self._servers:
            status, text = server.call("/load_lora_adapter", body)
            if status != 200:
                help = _START if status == 404 else None
                raise server.fails(f"does not load {name} ({status}): {text[:300]}", help, status)
            self.vllm_client.model = name
            if self.version % self._check_every or self.version == 1:  # The first may be the base.
                continue
            if server.ask(name, TEXTS, scored=True) == server.ask(self._base, TEXTS, scored=True):
                raise TrainError(ENGINE_IS_BASE(step=self.version, name=name))
        for old in self._names[:-1]:
            for server in self._servers:
                status, text = server.call("/unload_lora_adapter", {"lora_name": old})
                if status not in (200, 404):  # It may have been started anew.
                    raise server.fails(f"does not unload {old} ({status}): {text[:300]}")
        for old in self._names[:-2]:
            shutil.rmtree(self._folder / old, ignore_errors=True)
        self._names = self._names[-2:]


class _Sync:
    """Gives a trainer `Published` in place of `VLLMGeneration`."""

    replaces = "VLLMGeneration"

    def __init__(self, *given: Any, **settings: Any) -> None:
        module = _module_with(type(self), self.replaces)
        make = partial(Published, self)
        with patch.object(module, self.replaces, make):
            super().__init__(*given, **settings)


class _AsyncSync:
    """Gives TRL's asynchronous trainer, which sends plain LoRAs by itself, those of other specs.

    TRL checks the slots, and loads and unloads the versions.
    """

    replaces = "save_lora_adapter"

    def _init_lora_sync(self, model: Any) -> Any:
        """Return the engine, which TRL sends to all processes and takes for a yes."""
        args = self.args  # type: ignore[attr-defined]
        client = self.vllm_client  # type: ignore[attr-defined]
        client.wait_for_server_ready()
        engine = Engine(model, client.get_server_info(), Server(args.vllm_server_base_url))
        self._lora_name = _new_name()
        config = LoraConfig(r=engine.rank)
        module = _module_with(type(self), self.replaces)
        name = "validate_lora_for_vllm_sync"
        with patch.object(module, name, lambda _: config):
            super()._init_lora_sync(model)  # type: ignore[misc]
        return engine

    def _sync_weight_lora(self, start: float) -> Any:
        def save(model: Any, accelerator: Any, name: str, folder: str) -> None:
            self._lora_sync.write(model, accelerator, Path(folder))  # type: ignore[attr-defined]

        with patch.object(_module_with(type(self), self.replaces), self.replaces, save):
            return super()._sync_weight_lora(start)  # type: ignore[misc]
