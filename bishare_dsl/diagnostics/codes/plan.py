"""BS3xx: a spec against a model."""

from bishare_dsl.diagnostics.problem import Code

NO_SUCH_SITE = Code(
    "BS301",
    "a name or pattern that matches nothing in the model",
    "{what} matches no module of {model}",
)
NO_SUCH_LAYER = Code(
    "BS302",
    "a layer that the model does not have",
    "{what} is outside {model}, which has layers 0..{last} (or -{layers}..-1)",
    "layers count from 0: `layer in 0..3` is the first four, `layer in -4..-1` the last four",
)
NO_SUCH_EXPERT = Code(
    "BS320",
    "an expert that the model does not have",
    "{what} is outside {model}, which has {has}",
    "experts count from 0; what is of no expert has `expert == none`",
)
CONSTANT = Code(
    "BS321",
    "a condition that tells nothing apart",
    "this condition is {always} true of the {count} {what} that it is asked of",
    "leave it out, or ask what tells these apart",
    severity="warning",
)
HIDES_KIND = Code(
    "BS322",
    "a let that hides a kind",
    "`let {name}` hides the layers that {model} calls `{name}`",
    "give the let another name",
    severity="warning",
)
COVERS_NOTHING = Code(
    "BS303", "a share or target that covers no site", "{what} covers no module of {model}"
)
RANK_VARIES = Code(
    "BS304",
    "a rank that varies inside a pool",
    "the rank is not the same in the whole pool `{pool}`: {found}",
    "give one rank to all of it, or a key that tells apart what the rank depends on",
)
SHAPES = Code(
    "BS305",
    "a factor that cannot be shared between these modules",
    "share `{share}` cannot {what}: {why}",
    "take an option that fits these widths",
)
ARM_NOTHING = Code(
    "BS306",
    "a match arm that matches nothing",
    "{value} matches none of the modules of share `{share}`",
)
NO_ARM = Code("BS307", "a module that no match arm covers", "no arm gives `{site}` a rank")
UNCOVERED = Code(
    "BS308",
    "targets that no share covers",
    "no share covers {what}",
    "take these out of `target`, or let a share cover them with a rank above 0",
    severity="warning",
)
NOTHING_TO_TRAIN = Code(
    "BS309",
    "a spec with nothing to train",
    "`{spec}` has nothing to train: {why}",
    "give a share a rank above 0, and leave a tensor of it unfrozen",
)
EXCLUDES_NOTHING = Code(
    "BS310",
    "an exception that takes nothing away",
    "`except` takes nothing away here",
    "leave the exception out",
    severity="warning",
)
UNREACHABLE = Code(
    "BS311",
    "a rank that cannot be reached",
    "share `{share}` asks for rank {rank}, but at {sites} the update's rank is at most {reach}",
    "a smaller rank learns the same with fewer parameters",
    severity="warning",
)
LEFT_OUT = Code(
    "BS313",
    "what a target means and does not get",
    "`target` leaves out {what}: {why}",
    "`except` leaves it out, and then nothing is said of it",
    severity="warning",
)
ALONE = Code(
    "BS314",
    "a key under which nothing is shared",
    "no two modules of share `{share}` have the same value of this key, so nothing is shared",
    severity="warning",
)
TIED = Code(
    "BS315",
    "one of several modules that have one weight",
    "{names} are one weight in {model}, and `{statement}` does not name {unnamed}",
)
TRAINED_TWICE = Code(
    "BS316",
    "a weight that is trained in full and has a term",
    "`{path}` is trained in full, and a share adds a term to it",
    "take it out of `train`, or out of `target`",
)
TRAINS_SITE = Code(
    "BS317",
    "a layer of a block that is to be trained in full",
    "`{kind}` is a linear layer of a block: shares adapt it, and `train` is for the rest",
    "name it in `target`",
)
NO_DIRECTIONS = Code(
    "BS319",
    "a start that the weights do not have",
    "`{role}` of share `{share}` cannot start as directions of the weights: {why}",
)
FRESH_HEAD = Code(
    "BS318",
    "a head that is trained with the adapter",
    "the head {what} is trained too, and saved with the adapter ({size:,} parameters)",
    "`train heads` says that it is meant, `train none` leaves the head as it is",
    severity="note",
)
GATE_RANK = Code(
    "BS350",
    "gates of lower rank than the share",
    "gates of rank {gate_rank} make this update rank {gate_rank} at most, whatever its rank {rank} says",
    "raise `gate_rank`, or lower the rank: the update is the same",
    severity="warning",
)
KERNEL_CROPS = Code(
    "BS351",
    "a kernel size that does not divide a width",
    "size {size} does not divide {widths}: KE extends past the width and crops",
    severity="warning",
)
ADDS_NOTHING = Code(
    "BS312",
    "a part of a condition that adds nothing",
    "this part of `where` adds no target module to share `{share}`",
    "name it in `target` too, or leave it out here",
    severity="warning",
)
