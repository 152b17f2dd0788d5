"""BS6xx: saving, loading, merging and exporting adapters."""

from bishare_dsl.diagnostics.problem import Code

# Reading a folder ---------------------------------------------------------------------------------

NO_SUCH_FOLDER = Code(
    "BS601",
    "no such adapter folder",
    "there is no folder `{folder}`",
    "name a folder that `bishare compile` or `bishare train` wrote",
)
NOT_AN_ADAPTER = Code(
    "BS602",
    "not an adapter",
    "`{folder}` is not a bishare adapter: it has no adapter_config.json",
    "name a folder that `bishare compile` or `bishare train` wrote",
)
PEFT_ADAPTER = Code("BS603", "a PEFT adapter, not one of bishare's", "`{folder}` is a PEFT adapter")
BROKEN_CONFIG = Code(
    "BS604", "the config of an adapter that cannot be read", "`{path}` cannot be read: {reason}"
)
NEWER_FORMAT = Code(
    "BS605",
    "an adapter of a newer format",
    "`{folder}` is in format {found}, written by bishare {version}; this bishare reads up to format {known}",
)
MISSING_FILE = Code("BS606", "a file of the adapter is missing", "`{folder}` has no {file}")
CHANGED_FILE = Code(
    "BS607",
    "a file of the adapter is not what was saved",
    "`{path}` is not what was saved: {reason}",
)
BROKEN_FILE = Code(
    "BS608", "a file of the adapter cannot be read", "`{path}` cannot be read: {reason}"
)
MISSING_TENSOR = Code("BS609", "a tensor of the plan is missing", "the tensor `{name}` is missing")
UNEXPECTED_TENSOR = Code(
    "BS610", "a tensor that the plan does not have", "the tensor `{name}` is not in the plan"
)
WRONG_SHAPE = Code(
    "BS611",
    "a tensor of the wrong shape",
    "the tensor `{name}` is {found}, and the plan says {expected}",
)
WRONG_DTYPE = Code("BS612", "a tensor of the wrong type", "the tensor `{name}` is {found}")
OTHER_BASE = Code(
    "BS613",
    "an adapter of another base",
    "the adapter was made for {base}, and {model} is different: {reason}",
)
OTHER_FAMILY = Code(
    "BS614",
    "an adapter of another family",
    "the adapter was made for a `{base}` model, and this is a `{model}` model of the same shapes",
    severity="warning",
)
MISSING_TRANSFORM = Code(
    "BS619",
    "an adapter whose transform is not installed",
    "the adapter uses the transform `{name}`, which is not installed",
)
DRAWN_OTHERWISE = Code(
    "BS634",
    "a frozen tensor that is drawn differently here",
    "the frozen tensor `{name}` cannot be drawn again: from seed {seed}, torch {here} draws other numbers "
    "than torch {there} did when the adapter was saved",
)

# Writing a folder ---------------------------------------------------------------------------------

FOREIGN_FILE = Code(
    "BS615",
    "a file that bishare did not write is in the way",
    "`{path}` is not part of an adapter and would be overwritten",
)
CANNOT_WRITE = Code(
    "BS616", "a folder that cannot be written", "`{path}` cannot be written: {reason}"
)
NO_VALUES = Code(
    "BS617", "a tensor whose values are not here", "the values of `{name}` are not here: {reason}"
)
FOLDER_EXISTS = Code("BS618", "the folder exists", "`{folder}` exists")
FROZEN_CHANGED = Code(
    "BS635",
    "frozen tensors that their seed does not draw",
    "frozen tensors are stored, since they are not what seed {seed} draws: {names}",
    severity="warning",
)
NOTHING_COMPACT = Code(
    "BS636",
    "an adapter without a compact form",
    "no tensor of the adapter has a compact form",
    severity="warning",
)

# Merging ------------------------------------------------------------------------------------------

ALREADY_MERGED = Code("BS620", "merged twice", "the adapter is merged already")
NOT_MERGED = Code("BS621", "not merged", "the adapter is not merged")
RESIZED = Code(
    "BS698",
    "a table of tokens that cannot be resized",
    "`{path}` cannot have {wanted} rows: adapter `{name}` has something there, made for {rows}",
    "resize the base first, and adapt it then",
)
QUANTISED = Code(
    "BS622",
    "a quantised weight",
    "{what} quantised ({found}), so that the adapter cannot be merged",
    "`dequantize=True` (`--dequantize`) makes such layers dense; or load the base in 16 or 32 bits",
)
NOT_DENSE = Code(
    "BS623",
    "a layer that cannot be dequantised",
    "`{path}` ({found}) offers no way to dequantise it",
)
NO_WEIGHT = Code(
    "BS624", "a weight that is not here", "the weight of `{path}` is not here: {reason}"
)
SHARED_WEIGHT = Code(
    "BS625", "a weight that others use", "the weight of `{path}` is also that of `{other}`"
)
DISABLED = Code("BS626", "the adapter is disabled", "cannot {action} while the adapter is disabled")
UNLOADED = Code("BS627", "the adapter was unloaded", "the adapter is no longer in a model")
NOT_FINITE = Code(
    "BS628", "values that are not numbers", "{action} gives values in `{path}` that are not finite"
)
NOT_KEPT = Code(
    "BS629", "the base's weights were not kept", "cannot {action}: the base's weights were not kept"
)

# Exporting ----------------------------------------------------------------------------------------

NOT_EXPORTED = Code(
    "BS630",
    "not a folder that export may replace",
    "`{folder}` has files that an export does not write: {found}",
)
UNKNOWN_FORMAT = Code("BS631", "unknown export format", "`{format}` is not a format of export")
RANK_FOR_VLLM = Code(
    "BS632",
    "a rank that vLLM does not serve",
    "the export has rank {rank}, and vLLM serves at most {limit}",
    severity="warning",
)
TAKEN_FOR_EXPERTS = Code(
    "BS693",
    "a layer that PEFT takes for experts",
    "PEFT takes `{path}`{more} for experts of this `{family}`, and fails or computes something else",
    "leave these layers out of `target`, or merge the adapter; vLLM takes `--experts each`",
    severity="warning",
)
EXPORT_OPTION = Code(
    "BS646",
    "an option of export that makes no sense",
    "cannot export with this `{option}`: {reason}",
)
NOT_SHARED_OUTER = Code(
    "BS685",
    "experts that do not share their outer factor",
    "the {role} of `{kind}` is not the same for all experts of `{owner}`",
)
GGUF_FAMILY = Code(
    "BS647",
    "a family that is not exported to GGUF",
    "cannot export an adapter of a `{family}` to GGUF; the families are {known}",
)
GGUF_MODULE = Code(
    "BS648", "a module that llama.cpp does not know", "llama.cpp has no weight for `{path}`"
)
EXPORT_NEEDS_GGUF = Code(
    "BS649",
    "exporting to GGUF needs the package gguf",
    "the package `gguf`, which writes such files, is not installed",
)
NOT_PLAIN_LORA = Code(
    "BS656", "a PEFT adapter that is more than a plain LoRA", "cannot import `{folder}`: {reason}"
)

# What an adapter cannot do ------------------------------------------------------------------------

NOT_A_MATRIX = Code(
    "BS633",
    "an update that is not a matrix",
    "cannot {action}: what share `{share}` adds is not linear in its input (transform {transform}), so no "
    "matrix is equal to it",
)
NOT_SERVED = Code(
    "BS680", "what vLLM does not serve", "vLLM does not serve `{folder}`: it has {what}"
)
NOT_LOW_RANK = Code(
    "BS686",
    "a parameter that is trained in full, where a low-rank update is meant",
    "cannot {action}: `{path}` is trained in full",
)
NOT_KEPT_BY_PEFT = Code(
    "BS692",
    "a parameter that is trained in full, and that PEFT cannot keep",
    "cannot export `{path}` for PEFT, which is trained in full: {reason}",
)
MIXED_WHOLE = Code(
    "BS687",
    "a mixed batch with parameters trained in full",
    "adapter `{name}` cannot be active or run in a mixed batch: its `{path}` is trained in full",
)
READS_WEIGHTS = Code(
    "BS688",
    "a start that needs the base's weights",
    "`{tensor}` starts as the base's weights say (`{start}`), and {action} has their shapes alone",
    "adapt the model with its weights: `compile_spec(spec, model)`, or `bishare train`",
)
COMPACT_FOR_GOOD = Code(
    "BS637", "training a compact adapter", "this adapter was saved compactly, and cannot train"
)

# Several adapters in memory -----------------------------------------------------------------------

UNKNOWN_ADAPTER = Code("BS640", "no adapter of that name", "the model has no adapter `{name}`")
NAME_IN_USE = Code("BS641", "two adapters of one name", "the model has an adapter `{name}` already")
NO_NAME = Code(
    "BS638",
    "a name that no adapter can have",
    "an adapter cannot be called `{name}`",
    "call it by letters, digits, `_` and `-`",
)
STILL_MERGED = Code("BS643", "the adapter is merged", "cannot {action} while the adapter is merged")
SHARDED = Code(
    "BS645",
    "switching adapters of a sharded model",
    "cannot {action}: the model is sharded over several processes",
)
MIXED_UNKNOWN = Code(
    "BS670",
    "a row with an adapter that there is not",
    "row {row} of the batch: the model has no adapter `{name}`",
)
MIXED_ROWS = Code(
    "BS671", "not one name for each row", "{names} names in `adapter_names` for {rows} rows"
)
MIXED_TRAINING = Code(
    "BS672", "a mixed batch in training", "cannot run a mixed batch: the model is in training mode"
)
MIXED_NOT_LINEAR = Code(
    "BS673",
    "a mixed batch with an update that is not a matrix",
    "adapter `{name}` cannot run in a mixed batch: what share `{share}` adds is not linear in its input "
    "(transform {transform})",
)
MIXED_EXPERTS = Code(
    "BS679",
    "a mixed batch with terms at experts",
    "adapter `{name}` cannot run in a mixed batch: it has terms at the expert `{path}`",
)
MIXED_PLACES = Code(
    "BS682",
    "rows of a mixed batch that cannot be told apart",
    "cannot run a mixed batch of several adapters: whose rows `{path}` reads cannot be told, for {why}",
)
MIXED_OPEN = Code(
    "BS674", "a change while a mixed batch is open", "cannot {action} while a mixed batch is open"
)
NEEDS_NAME = Code(
    "BS676", "a library where an adapter is meant", "`{folder}` is a library of {count} adapters"
)
NOT_A_LIBRARY = Code(
    "BS677",
    "an adapter of what is not a library",
    "`{folder}` is an adapter by itself, and no library with an adapter `{name}`",
)
NOT_IN_LIBRARY = Code(
    "BS678", "no such adapter in a library", "the library `{folder}` has no adapter `{name}`"
)
NOT_FINITE_TENSORS = Code(
    "BS660",
    "tensors with values that are not numbers",
    "{count} of the adapter's tensors have values that are not finite, the first is `{name}`",
    severity="warning",
)
NOT_FINITE_ADAPTER = Code(
    "BS694",
    "an adapter of values that are not numbers",
    "cannot use `{folder}`: {what}",
    "load it with `load_adapter` to look at it, or train it again from its last good checkpoint",
)
OTHER_COMPILER = Code(
    "BS661",
    "the spec of an adapter gives another plan",
    "the adapter's spec gives another plan here than the one that it was saved with",
)
UNKNOWN_DTYPE = Code(
    "BS662", "no type that an adapter is saved in", "an adapter is not saved in {dtype}"
)

# Serving with vLLM --------------------------------------------------------------------------------

OTHER_PLAN = Code(
    "BS650",
    "an adapter of another plan",
    "`{folder}` has another plan than the server, which serves `{served}`: {reason}",
)
RANK_OVER_LIMIT = Code(
    "BS651",
    "a rank that the server does not take",
    "the adapter has rank {rank} at `{site}`, and the server's `--max-lora-rank` is {limit}",
)
LAYER_NOT_ADAPTED = Code(
    "BS652",
    "a layer that the server does not adapt",
    "the adapter adds to `{site}`, and the server adapts no layer that holds it",
)
OTHER_FROZEN = Code(
    "BS653",
    "an adapter with other frozen tensors",
    "the frozen tensor `{name}` of `{folder}` is not the server's",
)
NOT_IN_COMPACT_MODE = Code(
    "BS654",
    "a setting that does not go with compact mode",
    "a server in compact mode does not work with {setting}",
)
NOT_COMPACT = Code(
    "BS655",
    "plain LoRA for a server in compact mode",
    "`{folder}` is not an adapter folder of bishare, and the server is in compact mode",
)

# With PEFT ----------------------------------------------------------------------------------------

SPEC_TARGETS = Code(
    "BS664",
    "target modules beside a spec",
    "`target_modules` says nothing to BISHARE: the spec says what it targets",
    "leave `target_modules` out, and write `target q_proj, v_proj` (say) in the spec",
)
TRAINED_TWICE = Code(
    "BS665",
    "two adapters that train one parameter in full",
    "these adapters cannot run together: each has a `{path}` of its own",
    "make one of them active at a time",
)
COMPACT_BY_TRANSFORMERS = Code(
    "BS666",
    "a compact adapter that transformers cannot load",
    "`model.load_adapter` of transformers cannot read an adapter that was saved compactly",
    "load it by `PeftModel.from_pretrained(model, folder)` or `bishare_dsl.load_adapter(folder, model)`",
)
