"""BS5xx: finding, reading and loading models."""

from bishare_dsl.diagnostics.problem import Code

UNKNOWN_MODEL = Code("BS501", "no model is called `{name}`")
NO_SUCH_FILE = Code("BS502", "`{path}` does not exist")
NOT_A_MODEL = Code("BS503", "`{path}` holds no model: {reason}")
HUB_UNREACHABLE = Code(
    "BS504",
    "`{name}` is not in the local cache, and the Hugging Face Hub cannot be reached ({reason})",
)
HUB_REFUSED = Code("BS505", "the Hugging Face Hub does not give out `{name}`: {reason}")
BROKEN_CONFIG = Code("BS506", "`{path}` cannot be read: {reason}")
UNKNOWN_FAMILY = Code("BS507", "`{path}` {reason}")
NOT_CAUSAL = Code("BS508", "`{name}` is a `{family}` model; a causal language model is needed")
BAD_SIZES = Code("BS509", "no model can be built from the config of `{name}`: {reason}")
GGUF_BROKEN = Code("BS511", "`{path}` cannot be read as a GGUF model: {reason}")
NO_WEIGHTS = Code("BS512", "`{name}` has shapes but no weights")
BROKEN_WEIGHTS = Code("BS513", "the weights of `{name}` do not load: {reason}")
NO_SITES = Code("BS514", "`{name}` has no linear layer")
