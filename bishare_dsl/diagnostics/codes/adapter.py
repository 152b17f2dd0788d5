"""BS6xx: saving, loading, merging and exporting adapters."""

from bishare_dsl.diagnostics.problem import Code, note, warning

# Reading a folder ---------------------------------------------------------------------------------

NO_SUCH_FOLDER = Code("BS601", "the folder `{folder}` does not exist")
NOT_AN_ADAPTER = Code("BS602", "`{folder}` is not a bishare adapter: it has no adapter_config.json")
PEFT_ADAPTER = Code("BS603", "`{folder}` is a PEFT adapter")
BROKEN_CONFIG = Code("BS604", "`{path}` cannot be read: {reason}")
MISSING_FILE = Code("BS606", "`{folder}` has no {file}")
CHANGED_FILE = Code("BS607", "`{path}` is not what was saved: {reason}")
QUANTISED_FOLDER = Code("BS663", "`{folder}` is stored in {form}, which only 0.5 and older read")
BROKEN_FILE = Code("BS608", "`{path}` cannot be read: {reason}")
MISSING_TENSOR = Code("BS609", "the tensor `{name}` is missing")
UNEXPECTED_TENSOR = Code("BS610", "the tensor `{name}` is not in the plan")
WRONG_SHAPE = Code("BS611", "the tensor `{name}` is {found}, and the plan says {expected}")
WRONG_DTYPE = Code("BS612", "the tensor `{name}` is {found}")
OTHER_BASE = Code("BS613", "the adapter was made for {base}, and {model} is different: {reason}")
OTHER_FAMILY = warning(
    "BS614",
    "the adapter was made for a `{base}` model, and this is a `{model}` model with equal shapes: "
    "its layers may compute something else",
)
OTHER_FINGERPRINT = warning("BS620", "the adapter was saved on another base: {what}")
NO_FINGERPRINT = note("BS621", "saved without a fingerprint of the base")
MISSING_TRANSFORM = Code("BS619", "the adapter uses the transform `{name}`, which is not installed")
DRAWN_OTHERWISE = Code(
    "BS634",
    "the frozen tensor `{name}` cannot be regenerated: seed {seed} gives other numbers here than "
    "where the adapter was saved",
)
OTHER_SEED = Code(
    "BS695",
    "the tensors are of seed {found}, and the adapter is of seed {seed}, which gives other "
    "frozen tensors",
)

OTHER_CONFIG = Code("BS696", "`{folder}` has another plan than {what}")

# Writing a folder ---------------------------------------------------------------------------------

FOREIGN_FILE = Code("BS615", "`{path}` is not part of an adapter and would be overwritten")
CANNOT_WRITE = Code("BS616", "`{path}` cannot be written: {reason}")
NO_VALUES = Code("BS617", "the values of `{name}` are not here: {reason}")
FOLDER_EXISTS = Code("BS618", "`{folder}` exists")
SAVED_TOGETHER = Code("BS659", "a folder has one adapter, and {names} run together")
SCALE_NOT_SAVED = warning(
    "BS684",
    "adapter `{name}` is saved as it was trained: a folder does not store its scale, {scale:.4g}",
)
FROZEN_CHANGED = warning(
    "BS635",
    "frozen tensors are stored, because seed {seed} does not generate their values: {names}",
)

# Merging ------------------------------------------------------------------------------------------

RESIZED = Code(
    "BS698",
    "`{path}` cannot be resized to {wanted} rows: adapter `{name}` has tensors there for {rows}",
)
QUANTISED = Code("BS622", "{what} quantised ({found}), so that the adapter cannot be merged")
NOT_DENSE = Code("BS623", "`{path}` ({found}) offers no way to dequantise it")
NO_WEIGHT = Code("BS624", "the weight of `{path}` is not here: {reason}")
SHARED_WEIGHT = Code("BS625", "the weight of `{path}` is also that of `{other}`")
DISABLED = Code("BS626", "cannot {action} while {what} disabled")
UNLOADED = Code("BS627", "the model has no adapter of bishare, or it was taken out")
NOT_FINITE = Code("BS628", "{action} gives values in `{path}` that are not finite")
NOT_KEPT = Code("BS629", "cannot {action}: the base's weights were not kept")

UPDATE_LOST = warning(
    "BS639",
    "`{kind}` keeps {kept} of its update in {form}: rounding loses the rest",
)

# Exporting ----------------------------------------------------------------------------------------

UNKNOWN_FORMAT = Code("BS631", "`{format}` is not a format of export")
RANK_FOR_VLLM = warning("BS632", "the export has rank {rank}, and vLLM serves at most {limit}")
EXPORT_OPTION = Code("BS646", "cannot export with this `{option}`: {reason}")
GGUF_FAMILY = Code(
    "BS647",
    "cannot export an adapter of a `{family}` to GGUF: bishare knows llama.cpp's names for "
    "{known} alone",
)
GGUF_MODULE = Code("BS648", "llama.cpp has no weight for `{path}`")
NOT_PLAIN_LORA = Code("BS656", "cannot import `{folder}`: {reason}")

# Unsupported operations ---------------------------------------------------------------------------

NOT_A_MATRIX = Code(
    "BS633",
    "cannot {action}: the update of share `{share}` ({transform}) is not linear in its input, so "
    "no matrix equals it",
)
SCALES_BASE = Code(
    "BS675",
    "cannot {action}: `magnitude` scales the base's weights too, and not only what the adapter "
    "adds",
)
NOT_SERVED = Code("BS680", "vLLM does not serve `{folder}`: it has {what}")
NOT_LOW_RANK = Code(
    "BS686",
    "cannot {action}: `{path}` is trained in full, so its update is not of low rank",
)
NOT_KEPT_BY_PEFT = Code(
    "BS692",
    "cannot export `{path}`, which is trained in full: beside a LoRA, PEFT saves whole modules "
    "without targets, found by the ends of their paths",
)
MIXED_WHOLE = Code(
    "BS687",
    "adapter `{name}` runs in no mixed batch: it trains `{path}` in full, and all rows of a "
    "batch use one copy of it",
)
READS_WEIGHTS = Code(
    "BS688",
    "`{tensor}` starts from the base's weights (`{start}`), and {action} does not read them",
)
OTHER_WEIGHTS = Code(
    "BS699",
    "`{name}` is computed from the base's weights, and these give other values than those that "
    "the adapter was trained with",
)

# Several adapters in memory -----------------------------------------------------------------------

UNKNOWN_PART = Code("BS600", "adapter `{adapter}` has no {what} `{name}`")
UNKNOWN_ADAPTER = Code("BS640", "the model has no adapter `{name}`")
NAME_IN_USE = Code("BS641", "the model has an adapter `{name}` already")
NO_NAME = Code("BS638", "an adapter cannot be called `{name}`: {reason}")
STILL_MERGED = Code("BS643", "cannot {action} while the adapter is merged")
SHARDED = Code("BS645", "cannot {action}: the model is sharded over several processes")
MIXED_UNKNOWN = Code("BS670", "row {row} of the batch: the model has no adapter `{name}`")
MIXED_ROWS = Code("BS671", "{names} names in `adapter_names` for {rows} rows")
NAMES_IGNORED = Code("BS683", "a call of {model} takes no `adapter_names`, and would ignore it")
MIXED_NOT_LINEAR = Code(
    "BS673",
    "adapter `{name}` runs in no mixed batch: share `{share}` ({transform}) is not linear in its "
    "input, and has no factors that rows can be multiplied by",
)
MIXED_EXPERTS = Code(
    "BS679",
    "a mixed batch cannot have terms at `{path}`: the module of one expert gets tokens of all "
    "rows, and cannot tell which are whose",
)
MIXED_PLACES = Code(
    "BS682",
    "cannot run a mixed batch: whose rows `{path}` reads is unknown, for {why}",
)
MIXED_REENTRANT = Code(
    "BS689",
    "cannot train a mixed batch with `use_reentrant=True`: it recomputes layers when the "
    "adapters of the rows are no longer known",
)
MIXED_OPEN = Code("BS674", "cannot {action} while a mixed batch is open")
NEEDS_NAME = Code("BS676", "`{folder}` is a library of {count} adapters")
NOT_A_LIBRARY = Code(
    "BS677",
    "`{folder}` is a single adapter, not a library with an adapter `{name}`",
)
NOT_IN_LIBRARY = Code("BS678", "the library `{folder}` has no adapter `{name}`")
NOT_FINITE_TENSORS = warning(
    "BS660",
    "{count} of the adapter's tensors have values that are not finite, such as `{name}`",
)
NOT_FINITE_ADAPTER = Code("BS694", "cannot use `{folder}`: {what}")
OTHER_COMPILER = Code("BS661", "the adapter's spec gives another plan here than when it was saved")
UNKNOWN_CHOICE = Code("BS662", "an adapter is not saved with `{option}={value!r}`")

# Serving with vLLM --------------------------------------------------------------------------------

OTHER_PLAN = Code("BS650", "the server has no slots for the plan of `{folder}`: {why}")
RANK_OVER_LIMIT = Code(
    "BS651",
    "the adapter has rank {rank} at `{site}`, and the server's slots have `--max-lora-rank "
    "{limit}`",
)
LAYER_NOT_ADAPTED = Code(
    "BS652",
    "the adapter adds to `{site}`, and the server adapts no layer that contains it",
)
OTHER_FROZEN = Code(
    "BS653",
    "the frozen or shared tensor `{name}` of `{folder}` is not the server's, which has one copy "
    "of it for all adapters of a plan",
)
NOT_IN_COMPACT_MODE = Code("BS654", "a server in compact mode does not work with {setting}")
NO_ROOM = Code(
    "BS657",
    "slots for the plan of `{folder}` take {need:.3g} GiB, and {left:.3g} GiB are left of those "
    "granted",
)
BAD_SERVER_SETTING = Code("BS658", "`{setting}` as a setting of a server: {problem}")

# With PEFT ----------------------------------------------------------------------------------------

SPEC_TARGETS = Code(
    "BS664",
    "BISHARE takes no `target_modules`, because the spec says what it targets",
)
TRAINED_TWICE = Code(
    "BS665",
    "`{path}` is trained in full, which replaces it, so nothing else can change it",
)
WRONG_SCALE = Code("BS691", "an adapter cannot be scaled by {scale}, which is not finite")
LORA_ALONE = Code("BS669", "`{function}` of PEFT works on LoRAs of PEFT alone")
NOT_SCALED = Code(
    "BS667",
    "adapter `{name}` cannot be scaled: it trains `{path}` in full, which replaces the base's "
    "instead of adding to it",
)
FUSED_HEAD = Code(
    "BS668",
    "the trainer computes its loss from the weight of `{path}`, and leaves out what adapter "
    "`{name}` adds there",
)
