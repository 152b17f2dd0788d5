"""BS86x and BS87x: verifying that an adapter is applied."""

from bishare_dsl.diagnostics.problem import Code, warning

ADDS_NOTHING = Code("BS864", "A or B is all zero in {count} of {total} modules, first in `{path}`")
NO_FACTORS = warning(
    "BS865",
    "{count} tensors, such as `{path}`, are no factors of a LoRA, and engines may ignore them",
)
FILES_DO_NOT_FIT = Code("BS869", "the files of {count} of {total} adapters do not fit {model}")
NOT_AS_TRAINED = Code("BS870", "the server {url} does not apply {name} as trained: {words}")
CANNOT_JUDGE = Code("BS871", "whether the server {url} applies {name} cannot be judged")
NO_ANSWER = Code("BS872", "the server at {url} {reason}")
NO_GRADIENT = warning("BS873", "no gradient for {count} of {total} tensors in step {step}: {names}")
ENGINE_IS_BASE = Code("BS874", "after step {step} the engine answers '{name}' as the base")
ENGINE_IS_STALE = Code("BS875", "after step {step} the engine still has an older '{name}'")
NO_CARD = Code("BS876", "`{path}` is no probe card: {reason}")
REPLICAS_DIFFER = Code("BS877", "processes train {count} of {total} tensors apart: `{name}`")
MAYBE_STALE = warning("BS878", "an older '{name}' would not be seen")
NOT_COLOCATED = Code("BS879", 'with `vllm_mode="colocate"`, {setting} {effect}')
