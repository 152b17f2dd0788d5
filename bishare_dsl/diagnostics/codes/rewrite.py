"""BS4xx: rewriting a model's graphs."""

from bishare_dsl.diagnostics.problem import Code

ADAPTED_ALREADY = Code(
    "BS401",
    "a model that is adapted already",
    "this model has an adapter already",
    "One adapter runs in a model at a time. To have several in memory and switch between them, give each a "
    "name. Put several shares in one spec to add their updates up, or take the adapter out first with "
    "`model.bishare.unload()`, or into the weights with `model.bishare.merge_and_unload()`.",
    bad="compile_spec(spec, compile_spec(spec, model))",
    good='compile_spec(spec, compile_spec(spec, model), name="second")',
    shell=True,
)
OTHER_MODEL = Code(
    "BS402",
    "a model other than the plan's",
    "`{path}` should map {expected}, and the model has {found} there",
    "A plan, and so an adapter, belongs to the shapes of the model that it was made for. Nothing was "
    "changed in this model.",
    bad="bishare merge my-adapter --model smollm2-135m --out merged  # made for another model",
    good="bishare inspect my-adapter  # says which model it was made for",
    shell=True,
)
CANNOT_ADAPT = Code(
    "BS403",
    "a layer that cannot be adapted",
    "`{path}` cannot be adapted: {why}",
    "Its parent's forward cannot be traced, and the layer itself does not take one tensor; or its parent "
    "computes with the layer's weight and does not only call it, so that an update would not be heard. "
    "Leave it out of `target`, for instance with `except`.",
    bad="target every, odd_layer",
    good="target every, odd_layer except odd_layer",
    shell=True,
)
SHARDED_ALREADY = Code(
    "BS404",
    "a model that is sharded already",
    "the model is sharded over several processes, and FSDP does not see the adapter's tensors",
    "`fully_shard` shards what a model has, and averages the gradients of that. Tensors that are added later "
    "stand whole on every process, and trained there they go apart. Adapt the model first and let FSDP "
    "shard it then, as transformers' Trainer and accelerate do. The warning says nothing of inference, which "
    "works; nor of a model that transformers sharded while it loaded it (`distributed_config`), where its "
    "Trainer averages the gradients of what is not sharded.",
    bad="compile_spec(spec, fully_shard(model))",
    good="fully_shard(compile_spec(spec, model))",
    severity="warning",
    shell=True,
)
