"""What vLLM calls in each of its processes, by the entry points of the group ``vllm.general_plugins``."""

from __future__ import annotations

import logging

from bishare_dsl.serve.vllm.settings import unsupported


def register() -> None:
    """Let vLLM's workers load adapter folders of bishare.

    In a vLLM that is not supported this changes nothing and logs why, for plain LoRA is served by it still.
    """
    if reason := unsupported():
        logging.getLogger(__name__).error(reason)
        return
    from bishare_dsl.serve.vllm.check import check_folder, start_checks
    from bishare_dsl.serve.vllm.manager import WorkerManager
    from bishare_dsl.serve.vllm.private import install_check, install_manager

    install_manager(WorkerManager)
    install_check(start_checks, check_folder)


def register_resolver() -> None:
    """Let vLLM's server find adapter folders of bishare by their names.

    They stand in the folder that vLLM's own resolver looks into, ``VLLM_LORA_RESOLVER_CACHE_DIR``.

    Raises:
        ValueError: that is not a folder.
    """
    from vllm import envs
    from vllm.lora.resolver import LoRAResolverRegistry

    from bishare_dsl.serve.vllm.resolver import FolderResolver

    root = envs.VLLM_LORA_RESOLVER_CACHE_DIR
    if root and not unsupported():
        resolvers = LoRAResolverRegistry.resolvers
        others = {name: resolvers.pop(name) for name in [*resolvers]}
        LoRAResolverRegistry.register_resolver("bishare", FolderResolver(root))
        resolvers.update(others)  # vLLM's own opens whatever is there, and would wait for a pipe.
