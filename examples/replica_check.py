"""Stop a run whose processes train different copies of one adapter, of which only one would be saved.

from replica_check import ReplicaCheck

trainer = Trainer(..., callbacks=[ReplicaCheck()])
"""

from hashlib import sha256
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.diagnostics.codes.verify import REPLICAS_DIFFER
from bishare_dsl.models.hooks import is_sharded_tensor


class ReplicaCheck(TrainerCallback):
    """Stops training if processes train different copies of a tensor (BS877), of any PEFT model.

    After each of the first two steps, the digests of all trainable tensors that are not sharded are compared.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Compare in all processes."""
        several = distributed.is_available() and distributed.is_initialized()
        if state.global_step > 2 or not several:
            return
        mine = {
            name: sha256(p.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
            for name, p in more["model"].named_parameters()
            if p.requires_grad and not is_sharded_tensor(p)
        }
        everywhere: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(everywhere, mine)
        names = [name for name in mine if len({one.get(name) for one in everywhere}) > 1]
        if names:
            problem = REPLICAS_DIFFER(name=names[0], count=len(names), total=len(mine))
            raise BishareError(problem)
