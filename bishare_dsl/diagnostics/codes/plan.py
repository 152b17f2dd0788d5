"""BS3xx: a spec against a model."""

from bishare_dsl.diagnostics.problem import Code

_HEAD = "spec example\ntarget q_proj, k_proj, v_proj, up_proj, down_proj\n"

NO_SUCH_SITE = Code(
    "BS301",
    "a name or pattern that matches nothing in the model",
    "{what} matches no module of {model}",
    "Everything that is named must exist. Targets are linear layers inside the model's blocks, and "
    "heads and embeddings that are named; a bare name is the name of such a layer (its kind), or of a `let`.",
    bad="spec example\ntarget q_proj, FAKE\nshare local per module rank 4",
    good="spec example\ntarget q_proj, v_proj\nshare local per module rank 4",
)
NO_SUCH_LAYER = Code(
    "BS302",
    "a layer that the model does not have",
    "{what} is outside {model}, which has layers 0..{last} (or -{layers}..-1)",
    "Layers are counted from 0, or from the end with negative numbers. A range that lies outside in "
    "part is an error too: the spec means something that the model does not have.",
    bad=f"{_HEAD}share local where layer in 40..50 per module rank 4",
    good=f"{_HEAD}share local where layer in 16..31 per module rank 4",
    remedy="layers count from 0: `layer in 0..3` is the first four, `layer in -4..-1` the last four",
)
COVERS_NOTHING = Code(
    "BS303",
    "a share or target that covers no site",
    "{what} covers no module of {model}",
    "Each part of the condition matches something, but no target module fits all of it.",
    bad=f"{_HEAD}share local where q_proj and parent mlp per module rank 4",
    good=f"{_HEAD}share local where q_proj or parent mlp per module rank 4\n"
    "share rest where k_proj, v_proj per module rank 2",
)
RANK_VARIES = Code(
    "BS304",
    "a rank that varies inside a pool",
    "the rank is not the same in the whole pool `{pool}`: {found}",
    "One shared factor has one rank, so what the rank depends on must be constant among the modules "
    "that share it: make the key finer, or the rank coarser.",
    bad=f"{_HEAD}share intra per layer rank match kind {{ q_proj: 4; else: 2 }} via SS",
    good=f"{_HEAD}share intra per layer, kind rank match kind {{ q_proj: 4; else: 2 }}",
    remedy="give one rank to all of it, or a key that tells apart what the rank depends on",
)
SHAPES = Code(
    "BS305",
    "a factor that cannot be shared between these modules",
    "share `{share}` cannot {what}: {why}",
    "Modules of different widths can share a factor through a transform only: SS, GT or KE; or with "
    "a finer key, such as `per layer, kind`, under which widths are equal.",
    bad=f"{_HEAD}share intra per layer rank 4",
    good=f"{_HEAD}share intra per layer rank 4 via KE(size = 64)",
    remedy="take an option that fits these widths, or a key under which fewer modules share",
)
ARM_NOTHING = Code(
    "BS306",
    "a match arm that matches nothing",
    "{value} matches none of the modules of share `{share}`",
    "Each value of each arm must match a module that the share covers.",
    bad=f"{_HEAD}share local per module rank match kind {{ gate_proj: 4; else: 2 }}",
    good=f"{_HEAD}share local per module rank match kind {{ up_proj: 4; else: 2 }}",
)
NO_ARM = Code(
    "BS307",
    "a module that no match arm covers",
    "no arm gives `{site}` a rank",
    "A rank match must give a rank to every module that the share covers; `else` covers the rest.",
    bad=f"{_HEAD}share local per module rank match kind {{ q_proj: 4 }}",
    good=f"{_HEAD}share local per module rank match kind {{ q_proj: 4; else: 2 }}",
)
UNCOVERED = Code(
    "BS308",
    "targets that no share covers",
    "no share covers {what}",
    "They are targets and stay as they are in the base. If that is meant, take them out of `target`.",
    bad=f"{_HEAD}share local where q_proj per module rank 4",
    good="spec example\ntarget q_proj\nshare local per module rank 4",
    severity="warning",
    remedy="take these out of `target`, or let a share cover them with a rank above 0",
)
NOTHING_TO_TRAIN = Code(
    "BS309",
    "a spec with nothing to train",
    "`{spec}` has nothing to train: {why}",
    "Rank 0 drops a share, and what is frozen keeps its start; with all of it dropped or frozen nothing is "
    "left to train.",
    bad=f"{_HEAD}share local per module rank 0",
    good=f"{_HEAD}share local per module rank 4",
    remedy="give a share a rank above 0, and leave a tensor of it unfrozen",
)
EXCLUDES_NOTHING = Code(
    "BS310",
    "an exception that takes nothing away",
    "`except` takes nothing away here",
    "What stands after `except` exists in the model, but what stands before it does not include it.",
    bad="spec example\ntarget q_proj, v_proj except down_proj\nshare local per module rank 4",
    good="spec example\ntarget q_proj, v_proj\nshare local per module rank 4",
    severity="warning",
    remedy="leave the exception out",
)
UNREACHABLE = Code(
    "BS311",
    "a rank that cannot be reached",
    "share `{share}` asks for rank {rank}, but at {sites} the update's rank is at most {reach}",
    "The widths of a module, or the shape of a kernel, bound the rank of what the share can learn. "
    "Parameters above that bound buy nothing.",
    bad=f"{_HEAD}share inter per model rank 64 via KE(size = 256, shared_rank = 1)",
    good=f"{_HEAD}share inter per model rank 4 via KE(size = 256, shared_rank = 1)",
    severity="warning",
    remedy="a smaller rank learns the same with fewer parameters",
)
LEFT_OUT = Code(
    "BS313",
    "what a target means and does not get",
    "`target` leaves out {what}: {why}",
    "The conditions of the target fit it, and it is not a site: it stays as it is in the base, uncounted. "
    "If that is meant, say the target so that it does not fit, for instance with `except`.",
    bad='spec example\ntarget kind "*"\nshare local per module rank 4',
    good="spec example\ntarget parent self_attn\nshare local per module rank 4",
    severity="warning",
    remedy="`except` leaves it out, and then nothing is said of it",
)
ALONE = Code(
    "BS314",
    "a key under which nothing is shared",
    "no two modules of share `{share}` have the same value of this key, so nothing is shared",
    "A key with `via` is there to share, and this one tells all modules of the share apart. A coarser key "
    "shares: `per layer`, say, or `per kind`. If each module is to have its own, `per module` says so.",
    bad=f"{_HEAD}share intra per layer, kind rank 4 via SS",
    good=f"{_HEAD}share intra per layer rank 4 via SS",
    severity="warning",
)
TIED = Code(
    "BS315",
    "one of several modules that have one weight",
    "{names} are one weight in {model}, and `{statement}` does not name {unnamed}",
    "A head may be tied to the embedding: both modules use one weight. It is one site, and what is added to "
    "it is heard in both, so that the target has to name both. On a model in which they are not tied the "
    "same target means two sites.",
)
TRAINED_TWICE = Code(
    "BS316",
    "a weight that is trained in full and has a term",
    "`{path}` is trained in full, and a share adds a term to it",
    "What a term adds, training in full can add too, and of the two the sum alone is told by a loss.",
    bad="spec example\ntarget q_proj, lm_head\ntrain lm_head\nshare local per module rank 4",
    good="spec example\ntarget q_proj\ntrain lm_head\nshare local per module rank 4",
    remedy="take it out of `train`, or out of `target`",
)
TRAINS_SITE = Code(
    "BS317",
    "a layer of a block that is to be trained in full",
    "`{kind}` is a linear layer of a block: shares adapt it, and `train` is for the rest",
    "`train` takes norms, biases, routers, heads and embeddings. The weights of linear layers in blocks are "
    "nearly all of a model, and what shares are for. `biases and q_proj` means the biases of such layers.",
    bad="spec example\ntarget q_proj\ntrain v_proj\nshare local per module rank 4",
    good="spec example\ntarget q_proj, v_proj\ntrain norms\nshare local per module rank 4",
    remedy="name it in `target`",
)
NO_DIRECTIONS = Code(
    "BS319",
    "a start that the weights do not have",
    "`{role}` of share `{share}` cannot start as directions of the weights: {why}",
    "A weight has as many singular directions as its smaller side, and they are as wide as its features. "
    "So modules that share such a factor are equally wide on its side, and the rank is no higher than "
    "their weights have, side by side.",
    bad=f"{_HEAD}share slices per layer rank 4 via SS init A svd",
    good=f"{_HEAD}share slices per layer, in, out rank 4 init A svd",
)
FRESH_HEAD = Code(
    "BS318",
    "a head that is trained with the adapter",
    "the head {what} is trained too, and saved with the adapter ({size:,} parameters)",
    "A model for classifying, answering or rewards has a head of its own for the task, which starts random "
    "on a new one: frozen, nothing could be learned. `train heads` says so itself, and `train none` keeps it "
    "as it is.",
    severity="note",
    remedy="`train heads` says that it is meant, `train none` leaves the head as it is",
)
GATE_RANK = Code(
    "BS350",
    "gates of lower rank than the share",
    "gates of rank {gate_rank} make this update rank {gate_rank} at most, whatever its rank {rank} says",
    "In GT the update passes through the gates, so its rank is at most that of the gates "
    '(Fig. 4a of the paper: "local rank plus 2"). `gate_rank` raises it, at (2 size + d_in + d_out) '
    "parameters a module for each rank.",
    bad=f"{_HEAD}share inter per model rank 16 via GT(size = 1024)",
    good=f"{_HEAD}share inter per model rank 16 via GT(size = 1024, gate_rank = 16)",
    severity="warning",
    remedy="raise `gate_rank`, or lower the rank: the update is the same",
)
KERNEL_CROPS = Code(
    "BS351",
    "a kernel size that does not divide a width",
    "size {size} does not divide {widths}: KE extends past the width and crops",
    "The result is right, and some of the kernel's last column is unused. A size that divides every "
    "width wastes nothing.",
    bad=f"{_HEAD}share inter per model rank 16 via KE(size = 300)",
    good=f"{_HEAD}share inter per model rank 16 via KE(size = 256)",
    severity="warning",
)
ADDS_NOTHING = Code(
    "BS312",
    "a part of a condition that adds nothing",
    "this part of `where` adds no target module to share `{share}`",
    "What it names exists in the model but is not a target: name it in `target` too, or leave it out here.",
    bad="spec example\ntarget q_proj\nshare local where q_proj, v_proj per module rank 4",
    good="spec example\ntarget q_proj, v_proj\nshare local where q_proj, v_proj per module rank 4",
    severity="warning",
    remedy="name it in `target` too, or leave it out here",
)
