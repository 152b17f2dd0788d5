"""BS4xx: rewriting a model's graphs."""

from bishare_dsl.diagnostics.problem import Code

ADAPTED_ALREADY = Code(
    "BS401", "a model that is adapted already", "this model has an adapter already"
)
OTHER_MODEL = Code(
    "BS402",
    "a model other than the plan's",
    "`{path}` should map {expected}, and the model has {found} there",
)
CANNOT_ADAPT = Code("BS403", "a layer that cannot be adapted", "`{path}` cannot be adapted: {why}")
SHARDED_ALREADY = Code(
    "BS404",
    "a model that is sharded already",
    "the model is sharded over several processes, and FSDP does not see the adapter's tensors",
    severity="warning",
)
CANNOT_RESIZE = Code(
    "BS405",
    "a vocabulary that an adapter is as long as",
    "the adapter has tensors as long as the vocabulary, so its size cannot change now",
)
