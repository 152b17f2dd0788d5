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
BARE_CONTAINER = Code(
    "BS406",
    "a model that is a list of layers itself",
    "a `{kind}` would take what an adapter puts into it for one more of its layers",
    "put it into a module: `class Net(nn.Module)` whose `forward` calls it",
)
