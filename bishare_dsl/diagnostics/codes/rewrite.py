"""BS4xx: rewriting a model's graphs."""

from bishare_dsl.diagnostics.problem import Code, warning

ADAPTED_ALREADY = Code("BS401", "this model has an adapter already")
OTHER_MODEL = Code("BS402", "`{path}` should map {expected}, and the model has {found} there")
CANNOT_ADAPT = Code("BS403", "`{path}` cannot be adapted: {why}")
SHARDED_ALREADY = warning(
    "BS404",
    "the model is sharded over several processes, and FSDP does not see the adapter's tensors",
)
BARE_CONTAINER = Code(
    "BS406", "a `{kind}` would take what an adapter puts into it for one more of its layers"
)
FORWARD_REPLACED = Code(
    "BS407", "the forward of a `{kind}` was replaced, and the new one leaves the adapter out"
)
TENSOR_PARALLEL = Code(
    "BS408", "tensor parallelism splits the model's weights over {count} processes"
)
