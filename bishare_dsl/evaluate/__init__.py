"""Evaluate adapters on tasks of lm-evaluation-harness, and generate with them.

evaluation = evaluate("./my-checkpoint", ["my-adapter"], tasks="commonsense", base=True)
print(evaluation)
"""

from typing import TYPE_CHECKING

from bishare_dsl.lazy import lazy

if TYPE_CHECKING:
    from bishare_dsl.evaluate.completion import Completion, complete
    from bishare_dsl.evaluate.errors import EvaluateError
    from bishare_dsl.evaluate.results import Evaluation
    from bishare_dsl.evaluate.run import evaluate

__all__ = ["Completion", "EvaluateError", "Evaluation", "complete", "evaluate"]

__getattr__ = lazy(
    __name__,
    {
        "Completion": "bishare_dsl.evaluate.completion",
        "EvaluateError": "bishare_dsl.evaluate.errors",
        "Evaluation": "bishare_dsl.evaluate.results",
        "complete": "bishare_dsl.evaluate.completion",
        "evaluate": "bishare_dsl.evaluate.run",
    },
)
