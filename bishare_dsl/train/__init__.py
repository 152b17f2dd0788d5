"""Train an adapter: data, the Trainer, checkpoints and the record of a run.

result = train("bishare_ke", "./my-checkpoint", "rows.jsonl", "my-adapter")
print(result)
"""

from typing import TYPE_CHECKING

from bishare_dsl.lazy import lazy

if TYPE_CHECKING:
    from bishare_dsl.train.errors import TrainError, TrainingInterrupted
    from bishare_dsl.train.result import TrainResult
    from bishare_dsl.train.run import train

__all__ = ["TrainError", "TrainResult", "TrainingInterrupted", "train"]

_PLACES = {"errors": "TrainError TrainingInterrupted", "result": "TrainResult", "run": "train"}
__getattr__ = lazy(__name__, _PLACES)
