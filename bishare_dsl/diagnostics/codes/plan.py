"""BS3xx: fitting a spec to a model."""

from bishare_dsl.diagnostics.problem import Code, note, warning

NO_SUCH_SITE = Code("BS301", "{what} matches no module of {model}")
NO_SUCH_LAYER = Code(
    "BS302", "{what} is outside {model}, which has layers 0..{last} (or -{layers}..-1)"
)
NO_SUCH_EXPERT = Code("BS320", "{what} is outside {model}, which has {has}")
COVERS_NOTHING = Code("BS303", "{what} covers no module of {model}")
RANK_VARIES = Code("BS304", "the rank is not the same in the whole pool `{pool}`: {found}")
SHAPES = Code("BS305", "share `{share}` cannot {what}: {why}")
ARM_NOTHING = Code("BS306", "{value} matches none of the modules of share `{share}`")
NO_ARM = Code("BS307", "no arm gives `{site}` a rank")
UNCOVERED = warning("BS308", "no share covers {what}: {why} in layers {layers}")
NOTHING_TO_TRAIN = Code("BS309", "`{spec}` has nothing to train: {why}")
EXCLUDES_NOTHING = warning("BS310", "`except` takes nothing away here")
UNREACHABLE = warning(
    "BS311",
    "share `{share}` asks for rank {rank}, but at {sites} the update's rank is at most {reach}",
)
LEFT_OUT = warning("BS313", "`target` leaves out {what}: {why}")
TIED = Code("BS315", "{names} are one weight in {model}, and `{statement}` does not name {unnamed}")
TRAINED_TWICE = Code("BS316", "`{path}` is trained in full, and a share adds a term to it")
TRAINS_SITE = Code(
    "BS317",
    "`{kind}` is a linear layer of a block: shares adapt it, and `train` is for other parameters",
)
NO_DIRECTIONS = Code("BS319", "`{role}` of `{share}` cannot start as directions of weights: {why}")
FRESH_HEAD = note("BS318", "the head {what} is trained and saved too ({size:,} parameters)")
NO_MAGNITUDE = Code("BS323", "`magnitude` cannot scale `{path}`: {why}")
NOT_THE_TENSOR = Code(
    "BS324", "`{role}` of share `{share}` cannot be `{tensor}` at `{path}`: {why}"
)
NO_STRUCTURE = Code("BS325", "`{role}` of `{share}` cannot start as `{start}`: {why}")
JOINS_TOWERS = warning("BS326", "this key joins layer {layer} of the towers {towers}")
GATE_RANK = warning(
    "BS350",
    "gates of rank {gate_rank} make this update rank {gate_rank} at most, below the share's rank "
    "{rank}",
)
NO_MATRIX = Code("BS327", "share `{share}` adds no matrix to `{path}`: {why}")
KERNEL_CROPS = warning("BS351", "size {size} does not divide {widths}: KE goes past it and crops")
