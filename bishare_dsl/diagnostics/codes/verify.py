"""BS86x and BS87x: verifying that an adapter is applied."""

from bishare_dsl.diagnostics.problem import Code

NO_MODULE = Code(
    "BS861", "{count} of {total} modules of the adapter are not in {model}, the first is `{path}`"
)
ONE_FACTOR = Code("BS862", "{count} of {total} modules have only one of A and B: `{path}` first")
OTHER_SHAPES = Code(
    "BS863", "{count} of {total} modules have factors of another shape than {model}: `{path}` first"
)
ADDS_NOTHING = Code(
    "BS864", "A or B is all zero in {count} of {total} modules, the first is `{path}`"
)
NO_FACTORS = Code(
    "BS865",
    "{count} tensors are no factors of a LoRA, the first is `{path}`: engines may ignore them",
    severity="warning",
)
WITHOUT_TENSORS = Code(
    "BS866",
    "the config targets {count} modules for which the file has no tensors, the first is `{path}`",
    severity="warning",
)
NOT_PLAIN = Code(
    "BS867", "verify cannot work out what the adapter adds: {reason}", severity="warning"
)
ENGINE = Code("BS868", "{engine} {does} {what} ({source})")
NOT_AS_TRAINED = Code("BS870", "the server does not apply '{name}' as it was trained: {words}")
CANNOT_JUDGE = Code("BS871", "whether the server applies '{name}' cannot be judged")
NO_ANSWER = Code("BS872", "the server at {url} {reason}")
NO_GRADIENT = Code(
    "BS873",
    "{count} of {total} trainable tensors have no gradient in step {step}: {names}",
    severity="warning",
)
ENGINE_IS_BASE = Code(
    "BS874", "after step {step} the engine answers '{name}' as the base, bit for bit"
)
