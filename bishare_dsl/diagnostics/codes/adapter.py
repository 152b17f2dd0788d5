"""BS6xx: saving, loading, merging and exporting adapters."""

from bishare_dsl.diagnostics.problem import Code

# Reading a folder ---------------------------------------------------------------------------------

NO_SUCH_FOLDER = Code(
    "BS601",
    "no such adapter folder",
    "there is no folder `{folder}`",
    "An adapter is a folder that `bishare compile` or `model.bishare.save_pretrained` has written. "
    "Nothing is there, or it is a file. A relative path starts at the folder that the command is run in.",
    bad="bishare inspect no-such-folder",
    good="bishare compile specs/lora.share --model smollm2-135m --out my-adapter\n"
    "bishare inspect my-adapter",
    shell=True,
    remedy="name a folder that `bishare compile` or `bishare train` wrote",
)
NOT_AN_ADAPTER = Code(
    "BS602",
    "not an adapter",
    "`{folder}` is not a bishare adapter: it has no bishare_config.json",
    "`bishare_config.json` makes a folder an adapter, and is written last. A folder without it is something "
    "else, or was never saved to the end.",
    bad="bishare inspect specs",
    good="bishare compile specs/lora.share --model smollm2-135m --out my-adapter\n"
    "bishare inspect my-adapter",
    shell=True,
    remedy="name a folder that `bishare compile` or `bishare train` wrote",
)
PEFT_ADAPTER = Code(
    "BS603",
    "a PEFT adapter, not one of bishare's",
    "`{folder}` is a PEFT adapter",
    "It has an `adapter_config.json`, which is PEFT's. Where the model is known, as in `load_adapter` and "
    "`bishare merge`, such a folder is read too; `bishare import` makes an adapter of bishare's of it. What "
    "`bishare export` has written does not tell any more which factors were shared.",
    bad="bishare compile specs/lora.share --model smollm2-135m --out my-adapter\n"
    "bishare export my-adapter --format peft --model smollm2-135m --out for-peft\n"
    "bishare inspect for-peft",
    good="bishare compile specs/lora.share --model smollm2-135m --out my-adapter\n"
    "bishare inspect my-adapter",
    shell=True,
)
BROKEN_CONFIG = Code(
    "BS604",
    "a bishare_config.json that cannot be read",
    "`{path}` cannot be read: {reason}",
    "The config is JSON in UTF-8 with a fixed set of fields, written by bishare. This one is something "
    "else. Save or download the adapter again.",
)
NEWER_FORMAT = Code(
    "BS605",
    "an adapter of a newer format",
    "`{folder}` is in format {found}, written by bishare {version}; this bishare reads up to format {known}",
    "A later version of bishare wrote this adapter in a form that this one does not know. Guessing could "
    "give wrong tensors, so it is refused.",
)
MISSING_FILE = Code(
    "BS606",
    "a file of the adapter is missing",
    "`{folder}` has no {file}",
    "The config lists the files of the adapter, and this one is not there. Copy or download all of the "
    "folder.",
)
CHANGED_FILE = Code(
    "BS607",
    "a file of the adapter is not what was saved",
    "`{path}` is not what was saved: {reason}",
    "The config holds the size and the SHA-256 of each file. A file that is shorter was cut off while it "
    "was copied; one that differs was changed afterwards, or belongs to another adapter. (README.md is "
    "yours to edit.)",
)
BROKEN_FILE = Code(
    "BS608",
    "a file of the adapter cannot be read",
    "`{path}` cannot be read: {reason}",
    "The file is as it was saved by someone, and yet is not what its name says: not safetensors, not a "
    "plan, not text; or the system does not let it be read.",
)
MISSING_TENSOR = Code(
    "BS609",
    "a tensor of the plan is missing",
    "the tensor `{name}` is missing",
    "The plan names every tensor of the adapter, and the file must have all of them.",
)
UNEXPECTED_TENSOR = Code(
    "BS610",
    "a tensor that the plan does not have",
    "the tensor `{name}` is not in the plan",
    "A tensor that nothing uses is a sign that file and plan do not belong together.",
)
WRONG_SHAPE = Code(
    "BS611",
    "a tensor of the wrong shape",
    "the tensor `{name}` is {found}, and the plan says {expected}",
    "Factors are stored rank-major, (rank, width), kernels and gates likewise.",
)
WRONG_DTYPE = Code(
    "BS612",
    "a tensor of the wrong type",
    "the tensor `{name}` is {found}",
    "An adapter's tensors are float64, float32, bfloat16 or float16.",
)
OTHER_BASE = Code(
    "BS613",
    "an adapter of another base",
    "the adapter was made for {base}, and {model} is different: {reason}",
    "An adapter fits models with the same linear layers of the same widths in the same places. Load it on "
    "the model that it was made for, or on a fine-tuned version of that.",
)
OTHER_FAMILY = Code(
    "BS614",
    "an adapter of another family",
    "the adapter was made for a `{base}` model, and this is a `{model}` model of the same shapes",
    "Shapes agree, so the adapter can be loaded; but its numbers were learned on another kind of model.",
    severity="warning",
)

MISSING_TRANSFORM = Code(
    "BS619",
    "an adapter whose transform is not installed",
    "the adapter uses the transform `{name}`, which is not installed",
    "Packages bring transforms of their own (the entry points of the group `bishare.transforms`), and what "
    "a transform computes is in its package, not in the adapter. The adapter says which package and "
    "version that was; install it where the adapter is to run.",
)
DRAWN_OTHERWISE = Code(
    "BS634",
    "a frozen tensor that is drawn differently here",
    "the frozen tensor `{name}` cannot be drawn again: from seed {seed}, torch {here} draws other numbers "
    "than torch {there} did when the adapter was saved",
    "Frozen tensors are not in the file: their seed and their name draw them again, and the config holds "
    "the SHA-256 of what that gave. Another version of torch, or another machine, may draw other numbers. "
    'Load the adapter where it was saved, and save it with `save_pretrained(folder, frozen="tensors")` '
    "(`bishare compile --store-frozen`), which stores them too.",
)

# Writing a folder ---------------------------------------------------------------------------------

FOREIGN_FILE = Code(
    "BS615",
    "a file that bishare did not write is in the way",
    "`{path}` is not part of an adapter and would be overwritten",
    "Saving replaces an adapter's own files and no others. This folder is not an adapter and has a file of "
    "a name that an adapter needs.",
)
CANNOT_WRITE = Code(
    "BS616",
    "a folder that cannot be written",
    "`{path}` cannot be written: {reason}",
    "The system refused. Whatever was saved there before is as it was.",
)
NO_VALUES = Code(
    "BS617",
    "a tensor whose values are not here",
    "the values of `{name}` are not here: {reason}",
    "The tensor is on the meta device, or sharded over several processes (DeepSpeed ZeRO-3, FSDP1), and an "
    "adapter without its values would be useless. Load the model with its weights, or gather the "
    "parameters first: `deepspeed.zero.GatheredParameters`, `FSDP.summon_full_params`. What FSDP2 has "
    "sharded is gathered without that.",
)
FOLDER_EXISTS = Code(
    "BS618",
    "the folder exists",
    "`{folder}` exists",
    "What is there is never overwritten without being asked.",
    bad="bishare compile specs/lora.share --model smollm2-135m --out my-adapter\n"
    "bishare compile specs/bishare_ss.share --model smollm2-135m --out my-adapter",
    good="bishare compile specs/lora.share --model smollm2-135m --out my-adapter\n"
    "bishare compile specs/bishare_ss.share --model smollm2-135m --out my-adapter --force",
    shell=True,
)

FROZEN_CHANGED = Code(
    "BS635",
    "frozen tensors that their seed does not draw",
    "frozen tensors are stored, since they are not what seed {seed} draws: {names}",
    "A frozen tensor is left out of the file where its seed draws it again. These were given other values, "
    "for instance those of an adapter from elsewhere, so they are stored; nothing is lost.",
    severity="warning",
)
NOTHING_COMPACT = Code(
    "BS636",
    "an adapter without a compact form",
    "no tensor of the adapter has a compact form",
    "Some transforms, such as VectorBank, train more numbers than running needs, and `compact=True` leaves "
    "out the others. This adapter needs all that it trained, and is saved as ever.",
    severity="warning",
)

# Merging ------------------------------------------------------------------------------------------

ALREADY_MERGED = Code(
    "BS620",
    "merged twice",
    "the adapter is merged already",
    "Merging adds the adapter to the base's weights, and twice would be too much. `unmerge()` first.",
)
NOT_MERGED = Code(
    "BS621",
    "not merged",
    "the adapter is not merged",
    "`unmerge()` gives the base back the weights that `merge()` changed; nothing has changed them.",
)
SAVED_WHOLE = Code(
    "BS681",
    "a model that is saved with its adapter in it",
    "the whole base is saved, and the adapter's tensors, which `from_pretrained` does not read",
    "`model.save_pretrained` of transformers writes all tensors that a model has, at every checkpoint of its "
    "Trainer too. `model.bishare.save_pretrained` writes the adapter alone, which `load_adapter` loads into "
    "the base; `model.bishare.merge_and_unload()` gives a plain model with the adapter in its weights.",
    severity="warning",
    remedy="`model.bishare.save_pretrained(folder)` saves the adapter alone, for `load_adapter`",
)
QUANTISED = Code(
    "BS622",
    "a quantised weight",
    "{what} quantised ({found}), so that the adapter cannot be merged",
    "Rounding the sum to a few bits would lose most of the adapter (peft#2321). Either keep the adapter "
    "apart, which works on any base; or load the base in 16 or 32 bits and merge there; or pass "
    "`dequantize=True`, which replaces quantised layers by dense ones where they can be dequantised.",
    remedy="`dequantize=True` (`--dequantize`) makes such layers dense; or load the base in 16 or 32 bits",
)
NOT_DENSE = Code(
    "BS623",
    "a layer that cannot be dequantised",
    "`{path}` ({found}) offers no way to dequantise it",
    "A layer is dequantised through `dequantize()` of the layer or of its weight, which must give the dense "
    "(d_out, d_in) weight, or else by what it makes of unit vectors `(d_in, d_in)`. Load the base in 16 or "
    "32 bits and merge there.",
)
NO_WEIGHT = Code(
    "BS624",
    "a weight that is not here",
    "the weight of `{path}` is not here: {reason}",
    "Merging changes the base's weights, and starts such as `svd` read them, so they must be in memory. "
    "Weights that accelerate keeps in CPU memory are; weights on the meta device, offloaded to disk or "
    "sharded over several processes are not. Save the adapter, and merge it where the base is whole. A layer "
    "that is pruned, weight-normed or parametrised has no weight of its own: make that permanent first "
    "(`torch.nn.utils.prune.remove`, `remove_parametrizations`).",
)
SHARED_WEIGHT = Code(
    "BS625",
    "a weight that others use",
    "the weight of `{path}` is also that of `{other}`",
    "The adapter adds to one layer, and a merged weight would change the other one too. Give the layers "
    "weights of their own, or keep the adapter apart.",
)
DISABLED = Code(
    "BS626",
    "the adapter is disabled",
    "cannot {action} while the adapter is disabled",
    "Inside `disable_adapter()` the model is the base. Leave the block first.",
)
UNLOADED = Code(
    "BS627",
    "the adapter was unloaded",
    "the adapter is no longer in a model",
    "`unload()`, `merge_and_unload()` and `delete_adapter()` end the life of the handle; load or compile the "
    "adapter again.",
)
NOT_FINITE = Code(
    "BS628",
    "values that are not numbers",
    "{action} gives values in `{path}` that are not finite",
    "The adapter has diverged, or a value is too large for its type. Nothing was changed.",
)

NOT_KEPT = Code(
    "BS629",
    "the base's weights were not kept",
    "cannot {action}: the base's weights were not kept",
    "`merge(keep_base=False)` saves the memory of a second copy of the weights, and with it the way back. "
    "Load the base again.",
)

# Exporting ----------------------------------------------------------------------------------------

NOT_EXPORTED = Code(
    "BS630",
    "not a folder that export may replace",
    "`{folder}` has files that an export does not write: {found}",
    "`--force` replaces an earlier export, and nothing else.",
)
UNKNOWN_FORMAT = Code(
    "BS631",
    "unknown export format",
    "`{format}` is not a format of export",
    "`peft` writes a folder that PEFT and vLLM load, `gguf` a file that llama.cpp loads.",
    bad="bishare compile specs/lora.share --model smollm2-135m --out my-adapter\n"
    "bishare export my-adapter --format pft --model smollm2-135m --out for-peft",
    good="bishare compile specs/lora.share --model smollm2-135m --out my-adapter\n"
    "bishare export my-adapter --format peft --model smollm2-135m --out for-peft",
    shell=True,
)
RANK_FOR_VLLM = Code(
    "BS632",
    "a rank that vLLM does not serve",
    "the export has rank {rank}, and vLLM serves at most {limit}",
    "vLLM's `--max-lora-rank` takes 1, 8, 16, 32, 64, 128, 256, 320 or 512. PEFT loads any rank. Merge the "
    "adapter instead, or use smaller ranks.",
    severity="warning",
)
TAKEN_FOR_EXPERTS = Code(
    "BS693",
    "a layer that PEFT takes for experts",
    "PEFT takes `{path}`{more} for experts of this `{family}`, and fails or computes something else",
    "In families whose experts were modules before transformers 5, PEFT 0.21 maps the names `gate_proj`, "
    "`up_proj` and `down_proj` to what the experts have now, also where a dense block, a shared expert, an "
    "attention or a tower has them, and whatever paths the folder names. It refuses gate without up, and "
    "otherwise drops these layers' pairs. Leave them out of `target`, and adapt the attention's other "
    "layers and the experts alone; or `bishare merge` the adapter. `--experts each` is for vLLM and SGLang, "
    "which go by the names of the tensors.",
    severity="warning",
    remedy="leave these layers out of `target`, or merge the adapter; vLLM takes `--experts each`",
)

EXPORT_OPTION = Code(
    "BS646",
    "an option of export that makes no sense",
    "cannot export with this `{option}`: {reason}",
    "A rank is a whole number from 1 on, a type one of float32, bfloat16 and float16. Only PEFT's form has "
    "one rank for all modules, and several ways to have experts.",
)
NOT_SHARED_OUTER = Code(
    "BS685",
    "experts that do not share their outer factor",
    "the {role} of `{kind}` is not the same for all experts of `{owner}`",
    "The layout has the factors on the side of the hidden state once for all experts of a layer: A of gate "
    "and up, and B of down. A spec says that as `A per layer, kind  B per layer, kind, expert` for the first "
    "two and as `A per layer, kind, expert  B per layer, kind` for the last. Any adapter can be written "
    "expert by expert: `--experts each`.",
)
GGUF_FAMILY = Code(
    "BS647",
    "a family that is not exported to GGUF",
    "cannot export an adapter of a `{family}` to GGUF; the families are {known}",
    "llama.cpp keeps the weights of each family in an order of its own, and an adapter must be in the same. "
    "The families that are named have been tested with it. Merge the adapter instead, and convert the merged "
    "checkpoint with llama.cpp's own `convert_hf_to_gguf.py`.",
)
GGUF_MODULE = Code(
    "BS648",
    "a module that llama.cpp does not know",
    "llama.cpp has no weight for `{path}`",
    "Merge the adapter instead, and convert the merged checkpoint with llama.cpp's own "
    "`convert_hf_to_gguf.py`.",
)
EXPORT_NEEDS_GGUF = Code(
    "BS649",
    "exporting to GGUF needs the package gguf",
    "the package `gguf`, which writes such files, is not installed",
    "It is an optional dependency: `pip install 'bishare[gguf]'`.",
)

NOT_PLAIN_LORA = Code(
    "BS656",
    "a PEFT adapter that is more than a plain LoRA",
    "cannot import `{folder}`: {reason}",
    "A plain LoRA of linear layers is imported: any ranks and alphas, rsLoRA, dropout, and what a spec can "
    "train in full beside it: heads, embeddings, norms, biases. What scales, replaces or saves more than "
    "that, such as DoRA or a trained linear layer, would be lost.",
)

# What an adapter cannot do ------------------------------------------------------------------------

NOT_A_MATRIX = Code(
    "BS633",
    "an update that is not a matrix",
    "cannot {action}: what share `{share}` adds is not linear in its input (transform {transform}), so no "
    "matrix is equal to it",
    "Merging adds a matrix to a weight, and plain LoRA is a product of two. An update such as that of "
    "Experts, which weighs its experts by the input, is neither: it runs beside the base, by bishare. "
    "Training, saving, loading and disabling work as for any adapter.",
    bad="bishare compile specs/hydralora.share --model smollm2-135m --out my-adapter\n"
    "bishare export my-adapter --format peft --model smollm2-135m --out for-peft",
    good="bishare compile specs/lora.share --model smollm2-135m --out my-adapter\n"
    "bishare export my-adapter --format peft --model smollm2-135m --out for-peft",
    shell=True,
)
NOT_SERVED = Code(
    "BS680",
    "what vLLM does not serve",
    "vLLM does not serve `{folder}`: it has {what}",
    "vLLM adds to the linear layers of blocks, and to no head or embedding. `bishare merge` writes a model "
    "that it serves; in transformers the adapter runs as it is.",
)
NOT_LOW_RANK = Code(
    "BS686",
    "a parameter that is trained in full, where a low-rank update is meant",
    "cannot {action}: `{path}` is trained in full",
    "What `train` names in a spec is no product of two factors. PEFT takes it (`modules_to_save`), and "
    "`bishare merge` writes it into the base's weights.",
)
NOT_KEPT_BY_PEFT = Code(
    "BS692",
    "a parameter that is trained in full, and that PEFT cannot keep",
    "cannot export `{path}` for PEFT, which is trained in full: {reason}",
    "PEFT keeps whole modules beside a LoRA (`modules_to_save`), each by the end of its path, and none that "
    "is adapted or has adapted ones in it; only biases by themselves. Train it in another way, or merge the "
    "adapter: `bishare merge` writes it into the base's weights.",
)
MIXED_WHOLE = Code(
    "BS687",
    "a mixed batch with parameters trained in full",
    "adapter `{name}` cannot be active or run in a mixed batch: its `{path}` is trained in full",
    "A norm or a head of its own stands in the place of the base's, for all rows of a call. Make the adapter "
    "active with `set_adapter`, and run its rows by themselves.",
)
READS_WEIGHTS = Code(
    "BS688",
    "a start that needs the base's weights",
    "`{tensor}` starts as the base's weights say (`{start}`), and {action} has their shapes alone",
    "`svd` and its variants start a factor as singular directions of the base's weights. A plan, a count and "
    "a graph need shapes alone, but not the tensors themselves.",
    bad="bishare compile pissa --model llama-7b",
    good="bishare plan pissa --model llama-7b",
    shell=True,
    remedy="adapt the model with its weights: `compile_spec(spec, model)`, or `bishare train`",
)
COMPACT_FOR_GOOD = Code(
    "BS637",
    "training a compact adapter",
    "this adapter was saved compactly, and cannot train",
    "The compact form holds what running needs and drops the rest, such as the logits of all vectors that "
    "were not chosen: training could never choose them again. Train the adapter that was saved in full; "
    "merge, export and generation work with this one. (A model is put into training mode by `train()`, "
    "which Trainer calls.)",
)

# Several adapters in memory -----------------------------------------------------------------------

UNKNOWN_ADAPTER = Code(
    "BS640",
    "no adapter of that name",
    "the model has no adapter `{name}`",
    "`set_adapter` and `delete_adapter` take the name that the adapter was loaded or compiled with; "
    "`model.bishare.adapters` lists them. One that was given no name is `default`.",
)
NAME_IN_USE = Code(
    "BS641",
    "two adapters of one name",
    "the model has an adapter `{name}` already",
    "An adapter that is loaded or compiled beside others needs a name of its own. Give it another `name`, or "
    "drop the old one first with `delete_adapter`.",
)
DELETES_ACTIVE = Code(
    "BS642",
    "deleting the active adapter",
    "cannot delete `{name}`: it is the active adapter",
    "Which adapter runs is never changed in passing. Switch to another one first, with `set_adapter`; or, "
    "to have the base without any adapter, use `unload()`.",
)
STILL_MERGED = Code(
    "BS643",
    "the adapter is merged",
    "cannot {action} while the adapter is merged",
    "The base's weights hold the active adapter, and another one would add to both. `unmerge()` first.",
)
NOT_ACTIVE = Code(
    "BS644",
    "an adapter that is not active",
    "cannot {action}: `{name}` is not active, `{active}` is",
    "Only the active adapter, `model.bishare`, runs, merges and is disabled. A handle of another one still "
    "saves and exports it. Switch to it first, with `set_adapter`.",
)
SHARDED = Code(
    "BS645",
    "switching adapters of a sharded model",
    "cannot {action}: the model is sharded over several processes",
    "FSDP shards the tensors of the adapter that was active then, and averages the gradients of those: "
    "another one would stand whole on every process, and trained there its copies would go apart. Make the "
    "adapter active first and let FSDP shard the model then.",
)
MIXED_UNKNOWN = Code(
    "BS670",
    "a row with an adapter that there is not",
    "row {row} of the batch: the model has no adapter `{name}`",
    "`adapter_names` has for each row the name that an adapter was loaded or compiled with, or None for the "
    "base. `model.bishare.adapters` lists them. Rows are counted from 0.",
)
MIXED_ROWS = Code(
    "BS671",
    "not one name for each row",
    "{names} names in `adapter_names` for {rows} rows",
    "`adapter_names` is a list with one name, or None, for each row of the input, before beam search or "
    "`num_return_sequences` repeat it.",
)
MIXED_TRAINING = Code(
    "BS672",
    "a mixed batch in training",
    "cannot run a mixed batch: the model is in training mode",
    "Rows of several adapters are for inference: nothing gets a gradient. Call `model.eval()` first; to "
    "train one adapter, make it active with `set_adapter`.",
)
MIXED_NOT_LINEAR = Code(
    "BS673",
    "a mixed batch with an update that is not a matrix",
    "adapter `{name}` cannot run in a mixed batch: what share `{share}` adds is not linear in its input "
    "(transform {transform})",
    "A mixed batch applies to each row the effective factors of its adapter, and such an update has none. "
    "Make the adapter active with `set_adapter`, and run its rows by themselves.",
)
MIXED_EXPERTS = Code(
    "BS679",
    "a mixed batch with terms at experts",
    "adapter `{name}` cannot run in a mixed batch: it has terms at the expert `{path}`",
    "An expert is given tokens of all rows, and does not know whose each is. Make the adapter active with "
    "`set_adapter`, and run its rows by themselves.",
)
MIXED_OPEN = Code(
    "BS674",
    "a change while a mixed batch is open",
    "cannot {action} while a mixed batch is open",
    "In a block of `model.bishare.batch(...)` the rows' adapters stay as they are. Leave it first.",
)
NEEDS_NAME = Code(
    "BS676",
    "a library where an adapter is meant",
    "`{folder}` is a library of {count} adapters",
    "A library is one folder with several adapters, which share tensors. One of them is called by the "
    "folder, `#` and its name.",
)
NOT_A_LIBRARY = Code(
    "BS677",
    "an adapter of what is not a library",
    "`{folder}` is an adapter by itself, and no library with an adapter `{name}`",
    "What stands behind `#` names an adapter of a library, as `bishare fit` writes it for several adapters.",
)
NOT_IN_LIBRARY = Code(
    "BS678",
    "no such adapter in a library",
    "the library `{folder}` has no adapter `{name}`",
    "The folder `adapters` of a library has a file for each of its adapters, and the config lists them.",
)
NO_ADAPTERS = Code(
    "BS675",
    "a folder without adapters",
    "no folder in `{folder}` holds an adapter",
    "`load_adapters` takes a folder of adapter folders, each with a `bishare_config.json`. For one adapter "
    "there is `load_adapter`.",
)
NOT_FINITE_TENSORS = Code(
    "BS660",
    "tensors with values that are not numbers",
    "{count} of the adapter's tensors have values that are not finite, the first is `{name}`",
    "NaN or infinity: what such an adapter gives is not a number either. Training stops before that happens "
    "(BS750). It is saved and loaded all the same, bit for bit, for it may be what you want to look at.",
    severity="warning",
)
OTHER_COMPILER = Code(
    "BS661",
    "the spec of an adapter gives another plan",
    "the adapter's spec gives another plan here than the one that it was saved with",
    "An adapter folder has the spec's text and the shapes of its base; what each tensor is for is worked out "
    "again, and compared with what it was. Either the folder was edited, or this version of bishare, or of "
    "a transform's package, compiles the spec in another way than the one that saved it.",
)
UNKNOWN_DTYPE = Code(
    "BS662",
    "no type that an adapter is saved in",
    "an adapter is not saved in {dtype}",
    "By default each tensor is saved in the type that it has; `bfloat16` rounds float32 tensors to half the "
    "size.",
)

# Serving with vLLM --------------------------------------------------------------------------------

OTHER_PLAN = Code(
    "BS650",
    "an adapter of another plan",
    "`{folder}` has another plan than the server, which serves `{served}`: {reason}",
    "In compact mode vLLM's slots have the shapes of one plan: that of the adapter folder which "
    "`BISHARE_PLAN` or `--additional-config` names. Adapters of the same spec, with the same params, on the "
    "same base have it. Serve others from a server of their own, or in expanded mode, which takes any.",
)
RANK_OVER_LIMIT = Code(
    "BS651",
    "a rank that the server does not take",
    "the adapter has rank {rank} at `{site}`, and the server's `--max-lora-rank` is {limit}",
    "In expanded mode vLLM's slots hold effective factors, all of one rank. `bishare plan` shows the rank of "
    "each module; start the server with a `--max-lora-rank` that is as high, or in compact mode.",
)
LAYER_NOT_ADAPTED = Code(
    "BS652",
    "a layer that the server does not adapt",
    "the adapter adds to `{site}`, and the server adapts no layer that holds it",
    "vLLM adapts the layers that its `--lora-target-modules` names, or all that it can. A part of an adapter "
    "is not served without the rest. Experts are served by an export alone: `bishare export --experts each`.",
)
OTHER_FROZEN = Code(
    "BS653",
    "an adapter with other frozen tensors",
    "the frozen tensor `{name}` of `{folder}` is not the server's",
    "In compact mode frozen tensors are held once for all adapters: those of the adapter that the server was "
    "started with. Adapters compiled with the same seed have the same; what starts from the base's weights "
    "differs in its last bits between machines. Serve others in expanded mode.",
)
NOT_IN_COMPACT_MODE = Code(
    "BS654",
    "a setting that does not go with compact mode",
    "a server in compact mode does not work with {setting}",
    "Compact mode puts its own kernels into the layers of one process, or of several that each hold a part "
    "of every layer (`--tensor-parallel-size`).",
)
NOT_COMPACT = Code(
    "BS655",
    "plain LoRA for a server in compact mode",
    "`{folder}` is not an adapter folder of bishare, and the server is in compact mode",
    "In compact mode vLLM's slots hold the tensors of one plan and have no room for others. Start the server "
    "without `BISHARE_PLAN`, in expanded mode, to serve plain LoRA beside adapters of bishare.",
)
