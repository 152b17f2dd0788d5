"""BS2xx: what a spec means, whatever the model."""

from bishare_dsl.diagnostics.problem import Code

_HEAD = "spec example\ntarget q_proj, v_proj\n"

UNKNOWN_PARAM_SET = Code(
    "BS207",
    "unknown param given from outside",
    "spec `{spec}` has no param `{name}`",
    "A value was given by `--set name=value` or `params={...}` for a name that the spec does not "
    "declare with `param`. Nothing is ignored in silence: declare the param, or correct the name.",
    bad="bishare plan specs/lora.share --model llama-7b --set rank=4",
    good="bishare plan specs/lora.share --model llama-7b --set r=4",
    shell=True,
)

UNKNOWN_NAME = Code(
    "BS201",
    "unknown name",
    "nothing here is called `{name}`",
    "A number was expected, and the bare name stands for none: it is not a `param` of this spec. A param "
    "must be declared, above its use. Beside params, `rank` may read a site's attributes, and `scale` "
    "may read `alpha` and `rank`.",
    bad=f"{_HEAD}param r = 4\nshare local per module rank q",
    good=f"{_HEAD}param r = 4\nshare local per module rank r",
)
TWICE = Code(
    "BS202",
    "one name, two meanings",
    "{what} `{name}` is declared twice",
    "Shares, params and lets each need a name of their own; a param and a let may not share one either.",
    bad=f"{_HEAD}share local per module rank 4\nshare local per layer rank 4 via SS",
    good=f"{_HEAD}share local per module rank 4\nshare intra per layer rank 4 via SS",
)
RESERVED = Code(
    "BS203",
    "a name that cannot be taken",
    "`{name}` cannot be declared: {why}",
    "Attributes of a site (`layer`, `kind`, ...) and the names `rank` and `alpha` keep their meaning "
    "everywhere. Share names are words of letters, digits and underscores, since tensors are named "
    "after them.",
    bad=f"{_HEAD}param layer = 4\nshare local per module rank layer",
    good=f"{_HEAD}param r = 4\nshare local per module rank r",
    remedy="give it another name",
)
UNKNOWN_TRANSFORM = Code(
    "BS204",
    "unknown transform",
    "no transform is called `{name}`",
    "`via` takes the name of a transform: SS, GT or KE, or one that an installed package registers.",
    bad=f"{_HEAD}share inter per model rank 4 via KR",
    good=f"{_HEAD}share inter per model rank 4 via KE",
)
UNKNOWN_OPTION = Code(
    "BS205",
    "unknown option",
    "{transform} has no option `{name}`",
    "Each transform has options of its own; a name it does not know is an error, never ignored.",
    bad=f"{_HEAD}share inter per model rank 4 via KE(sise = 64)",
    good=f"{_HEAD}share inter per model rank 4 via KE(size = 64)",
)
BAD_OPTION = Code(
    "BS206",
    "a value that an option cannot take",
    "{transform} cannot take {name} = {value}: {why}",
    "The transform checks its options: numbers have bounds, words are from a list, and some options "
    "exclude each other.",
    bad=f"{_HEAD}share inter per model rank 4 via SS(slice = middle)",
    good=f"{_HEAD}share inter per model rank 4 via SS(slice = centre)",
)
UNKNOWN_INIT = Code(
    "BS208",
    "unknown start",
    "no tensor can start as `{name}`",
    "A factor starts as `zeros`, `ones`, `normal` (standard deviation 0.02), `uniform` (-1 to 1), "
    "`kaiming_uniform` (plus or minus 1/sqrt(fan-in), as in LoRA), `kaiming_normal` (standard deviation "
    "sqrt(2/fan-in)), or as the base's weights say: `svd`, `svd_vectors`, `svd_scaled`, `svd_bottom`, "
    "`svd_vectors_bottom`.",
    bad=f"{_HEAD}share local per module rank 4 init A kaiming",
    good=f"{_HEAD}share local per module rank 4 init A kaiming_uniform",
)
START = Code(
    "BS209",
    "a start that is not the base model, or that never leaves it",
    "share `{share}` {what}",
    "An adapted model starts identical to its base: one factor starts at zero and the other does not. "
    "With neither at zero the model starts elsewhere, which is an error unless the share says `start "
    "nonzero`. With both at zero the term gets no gradient and does nothing.",
    bad=f"{_HEAD}share local per module rank 4 init B normal",
    good=f"{_HEAD}share local per module rank 4 init B normal start nonzero",
)
NO_VALUE = Code(
    "BS210",
    "an expression without a value",
    "this has no value here: {why}",
    "Arithmetic works on numbers, order exists between numbers only, and a predicate must be true or "
    "false.",
    bad=f"{_HEAD}share local per module rank 4 / 0",
    good=f"{_HEAD}share local per module rank 4 / 2",
    remedy="write an expression that has a number at every module",
)
BAD_NUMBER = Code(
    "BS211",
    "a number out of its range",
    "{what} cannot be {value}: {why}",
    "A rank is a whole number, 0 or more (0 drops the share); dropout is at least 0 and below 1; a "
    "scale is a number other than 0, since a term scaled by 0 does nothing.",
    bad=f"{_HEAD}share local per module rank 2.5",
    good=f"{_HEAD}share local per module rank 2",
)
NO_ALPHA = Code(
    "BS212",
    "a scale that reads an alpha that is not given",
    "this scale reads `alpha`, and nothing sets it",
    "`scale alpha / sqrt(rank)` needs an `alpha`, of the share or at the top of the spec.",
    bad=f"{_HEAD}share local per module rank 4 scale alpha / sqrt(rank)",
    good=f"{_HEAD}share local per module rank 4 alpha 16 scale alpha / sqrt(rank)",
    remedy="give one: `alpha 16` before the first share, say",
)
UNUSED = Code(
    "BS213",
    "declared and never used",
    "{what} `{name}` is never used",
    "A param that nothing reads, a let that nothing names, an alpha that the scale does not read, a "
    "default that every share overrides, or a permission that is not needed does nothing: a warning says "
    "so.",
    bad=f"{_HEAD}param r = 4\nshare local per module rank 2",
    good=f"{_HEAD}param r = 4\nshare local per module rank r",
    severity="warning",
    remedy="leave it out, or use it",
)
BROKEN_PLUGIN = Code(
    "BS214",
    "a package's transform that cannot be used",
    "the transform `{name}` of package `{package}` cannot be used: {why}",
    "An installed package (by an entry point in the group `bishare.transforms`) or a program (by "
    "`register`) brings this transform, and it does not load, gives wrong shapes, or takes a name that "
    "another transform has. Update or remove the package, or tell its authors.",
    bad="bishare check spec-that-uses-the-broken-transform.share",
    good="bishare check specs/bishare_ke.share",
    shell=True,
)
UNKNOWN_ROLE = Code(
    "BS215",
    "a tensor that this share does not have",
    "share `{share}` has no tensor `{role}` to {what}",
    "Keys, `freeze` and `init` name tensors by role: the factors `A` and `B` where the transform has them, "
    "or one of the transform's own, such as `K_A` of KE.",
    bad=f"{_HEAD}share inter per model rank 4 via KE freeze G_id",
    good=f"{_HEAD}share inter per model rank 4 via KE freeze A",
    remedy="leave it out",
)
OUTDENTED = Code(
    "BS218",
    "a setting of one share that looks like one of all",
    "`{word}` begins a line, and is a clause of share `{share}` alone",
    "`alpha`, `scale`, `dropout` and `init` behind a share are clauses of it, wherever they stand. At the "
    "beginning of a line they look like defaults for all shares, which stand before the first one.",
    bad=f"{_HEAD}share a per module rank 4\nshare b per layer rank 4 via SS\nalpha 16",
    good=f"{_HEAD}alpha 16\nshare a per module rank 4\nshare b per layer rank 4 via SS",
    severity="warning",
)
FINE_KEY = Code(
    "BS219",
    "a key that divides and does not round",
    "this key tells apart all that {divided} tells apart: `/` does not round",
    "`per layer / 4` is another number for each layer, so that no two layers share. `layer // 4` rounds "
    "down, and is the same for four layers in a row.",
    bad=f"{_HEAD}share inter per layer / 4 rank 8 via SS",
    good=f"{_HEAD}share inter per layer // 4 rank 8 via SS",
    severity="warning",
)
EMPTY_RANGE = Code(
    "BS220",
    "a range that ends before it begins",
    "`{first}..{last}` is empty: it ends before it begins",
    "A range names its lower end first; both ends are in it.",
    bad=f"{_HEAD}share late where layer in 16..8 per module rank 4",
    good=f"{_HEAD}share late where layer in 8..16 per module rank 4",
)
CONSTANT_KEY = Code(
    "BS221",
    "a key that is the same everywhere",
    "this key is the same at every module, so that it tells nothing apart",
    "`layers` is the number of layers, and a number or a param is what it is: as keys they make one pool of "
    "all modules. Such a pool is said by `per model`.",
    bad=f"{_HEAD}share inter per layers rank 8 via SS",
    good=f"{_HEAD}share inter per layer rank 8 via SS",
    severity="warning",
    remedy="for one pool of all write `per model`",
)
NO_KEY = Code(
    "BS222",
    "a shared tensor without a key",
    "share `{share}` gives `{role}` no key",
    "Each tensor that a transform pools has a key: its own, as in `A per layer`, or that of a plain `per`. "
    "What a transform gives each module for itself needs none.",
    bad=f"{_HEAD}share bank L_A per kind rank 4 via VectorBank start nonzero",
    good=f"{_HEAD}share bank per model rank 4 via VectorBank start nonzero",
)
NOT_PLAIN = Code(
    "BS223",
    "a start that is read from a weight, for a tensor of another shape",
    "`{role}` of share `{share}` cannot start as `{start}`: {transform} makes factors of it",
    "`svd` and its variants start a factor as singular directions of the weight, so it must be a factor as "
    "wide as that. A tensor from which a transform makes factors of other widths has no such directions.",
    bad=f"{_HEAD}share inter per layer rank 4 via KE(size = 64) init A svd",
    good=f"{_HEAD}share inter per layer, in, out rank 4 init A svd",
    remedy="start it otherwise, or take another transform",
)
NOT_LINEAR = Code(
    "BS217",
    "a setting that needs a linear update",
    "{transform} is not linear in its input, so it takes no `{what}`",
    "A diagonal between the factors exists only where the update is a product of factors.",
    bad=f"{_HEAD}share experts per module rank 4 via Experts gain rank init 1",
    good=f"{_HEAD}share experts per module rank 4 via Experts",
    remedy="leave it out; `gain out` is possible",
)
