"""BS4xx: rewriting a model's graphs."""

from bishare_dsl.diagnostics.problem import Code, warning

ADAPTED_ALREADY = Code("BS401", "this model has an adapter already")
OTHER_MODEL = Code("BS402", "`{path}` should map {expected}, and the model has {found} there")
CANNOT_ADAPT = Code("BS403", "`{path}` cannot be adapted: {why}")
SHARDED_ALREADY = warning(
    "BS404",
    "FSDP has sharded the model, and does not average the gradients of tensors added afterwards",
)
BARE_CONTAINER = Code("BS406", "a `{kind}` would take parts of an adapter for layers of its list")
FORWARD_REPLACED = Code(
    "BS407",
    "the forward of a `{kind}` was replaced, and the new one calls the base's layers without the "
    "adapter",
)
TENSOR_PARALLEL = Code(
    "BS408",
    "tensor parallelism splits the weights over {count} processes, and an adapter is not split "
    "with them",
)
