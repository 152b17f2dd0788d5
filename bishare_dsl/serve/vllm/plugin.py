"""The entry points in the group ``vllm.general_plugins``, which vLLM calls in each process."""

from __future__ import annotations

import logging

from bishare_dsl.serve.vllm.settings import experimental, unsupported


def register() -> None:
    """Let vLLM's workers load adapter folders of bishare.

    In another vLLM, this only logs what is left: adapters by name, as plain LoRAs.
    """
    log = logging.getLogger(__name__)
    reason = unsupported()
    if reason is not None:
        log.warning(reason)
        return
    warning = experimental()
    if warning is not None:
        log.warning(warning)
    from bishare_dsl.serve.vllm.check import check_folder, start_checks
    from bishare_dsl.serve.vllm.folder import stamp_of
    from bishare_dsl.serve.vllm.manager import WorkerManager
    from bishare_dsl.serve.vllm.private import (
        install_check,
        install_manager,
        install_prefix_key,
    )

    install_manager(WorkerManager)
    install_prefix_key(stamp_of)
    install_check(start_checks, check_folder)


def register_resolver() -> None:
    """Let vLLM's server find bishare's adapter folders by name.

    They are in the folder of vLLM's own resolver, ``VLLM_LORA_RESOLVER_CACHE_DIR``. Only public names of
    vLLM are used, so that this works in any version.

    Raises:
        ValueError: this is not a folder.
    """
    from vllm import envs
    from vllm.lora.resolver import LoRAResolverRegistry

    from bishare_dsl.serve.vllm.resolver import FolderResolver

    if root := envs.VLLM_LORA_RESOLVER_CACHE_DIR:
        if unsupported():
            from bishare_dsl.serve.vllm.plain import served_folder as place
        else:
            from bishare_dsl.serve.vllm.check import check_folder as place
        resolvers = LoRAResolverRegistry.resolvers
        others = {name: resolvers.pop(name) for name in [*resolvers]}
        LoRAResolverRegistry.register_resolver("bishare", FolderResolver(root, place))
        resolvers.update(others)  # vLLM's resolver opens any file, and would block on a pipe.
