"""BS5xx: finding, reading and loading models."""

from bishare_dsl.diagnostics.problem import Code

UNKNOWN_MODEL = Code("BS501", "no model is called `{name}`")
NO_SUCH_FILE = Code("BS502", "there is no file or folder `{path}`")
NOT_A_MODEL = Code("BS503", "`{path}` holds no model: {reason}")
HUB_UNREACHABLE = Code(
    "BS504",
    "`{name}` is not in the local cache, and the Hugging Face Hub cannot be reached ({reason})",
)
HUB_REFUSED = Code(
    "BS505",
    "the Hugging Face Hub does not give out `{name}`: {reason}",
    "check the name; accept a gated model's licence on its page, and log in: `hf auth login`",
)
BROKEN_CONFIG = Code(
    "BS506",
    "`{path}` cannot be read: {reason}",
    "a model's `config.json` is one JSON object in UTF-8. This one is not, or it cannot be opened",
)
UNKNOWN_FAMILY = Code(
    "BS507",
    "`{path}` {reason}",
    "use a family that the installed transformers knows; a checkpoint's own code is never run",
)
NOT_CAUSAL = Code(
    "BS508",
    "`{name}` is a `{family}` model, and here a causal language model is needed",
    "use a decoder that predicts the next token, which `AutoModelForCausalLM` can build",
)
BAD_SIZES = Code(
    "BS509",
    "no model can be built from the config of `{name}`: {reason}",
    "correct its fields: they contradict each other, or the family does not allow one's value",
)
GGUF_BROKEN = Code(
    "BS511",
    "`{path}` cannot be read as a GGUF model: {reason}",
    "fetch the file again; or give the checkpoint, if transformers cannot read this family from GGUF",
)
NO_WEIGHTS = Code(
    "BS512",
    "`{name}` has shapes but no weights",
    "give the weights: a checkpoint folder, a `.gguf` file or a Hub id",
)
BROKEN_WEIGHTS = Code(
    "BS513",
    "the weights of `{name}` do not load: {reason}",
    "fetch the checkpoint again: its weights are missing, damaged, or do not belong to its config",
)
NO_SITES = Code(
    "BS514",
    "`{name}` has no linear layer inside a numbered block",
    "give a model with linear layers in numbered blocks, such as `model.layers.0.self_attn.q_proj`",
)
