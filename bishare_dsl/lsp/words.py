"""What the words of the language mean, in a line each, for whoever points at one."""

from __future__ import annotations

MEANINGS = {
    # statements
    "spec": "The name of the spec, and with it of the plan, the adapter and its model card.",
    "use": "Brings in what another spec says: a path from this file's folder, or a spec that ships.",
    "param": "A value that `--set` on the command line or `params` in Python may replace.",
    "let": "A name for a selection of sites.",
    "target": "The sites that may be adapted.",
    "train": "What is trained in full beside the shares: norms, biases, heads; saved with the adapter.",
    "share": "One low-rank term, `scale * B A x`, at each site that it covers.",
    "replace": "Declares anew a `param`, `let` or `share` of a used file.",
    # clauses
    "where": "The targets that the share covers; without it all of them.",
    "per": "Sites with equal values of these keys share one factor pair; behind a role, one tensor of it.",
    "A": "The factor on the side of the input, rank by `in`.",
    "B": "The factor on the side of the output, rank by `out`.",
    "rank": "Rows of the factors: a number, arithmetic, or `match`.",
    "via": "The transform that fits a shared factor to a site's widths.",
    "alpha": "Without a `scale` it means `scale alpha / rank`.",
    "scale": "The number that the term is multiplied by.",
    "dropout": "On the term's input, in training: at least 0, below 1.",
    "init": "How tensors start, by role; in a `gain`, what all of the diagonal starts at.",
    "freeze": "Tensors that keep their start, by role.",
    "gain": "Learned diagonals of each site, `diag(out) B diag(rank) A`.",
    "start": "`start nonzero` lets the model start different from its base.",
    "nonzero": "`start nonzero` lets the model start different from its base.",
    # inside expressions
    "model": "The key that is the same everywhere: one factor pair for the whole model.",
    "except": "What stands behind it is left out of the whole list before it.",
    "match": "Chooses by a value: the first arm with that value, or a range around it, gives the rank.",
    "else": "The rank of all that no arm above fits.",
    "and": "Both hold.",
    "or": "At least one of them holds.",
    "not": "It does not hold.",
    "in": "The width of a site's input; behind a value, whether that is in a range or a set.",
    "out": "The width of a site's output.",
    # attributes of a site
    "layer": "The index of a site's block, from 0; a negative number counts from the last block.",
    "layers": "The number of blocks of the model, in each tower its own.",
    "kind": "A site's own name, such as `q_proj`; before a name or pattern, the sites of that kind.",
    "if": "Chooses between two values: `8 if late else 2`.",
    "parent": "The name of a site's nearest ancestor that is not a number, such as `self_attn`.",
    "tower": "What a site's stack of blocks is of: `vision`, `encoder`, ...; `main` where no name says it.",
    "expert": "The number of the expert that a site belongs to; the word `none` outside of experts.",
    "adapter": "Which adapter of a library a site is of, for `bishare fit`; one value everywhere else.",
    "path": "A site's path in the model; before a pattern in quotes, the sites whose path fits.",
    "module": "A site's path in the model: each is alone.",
    # functions
    "abs": "The size of a number without its sign.",
    "floor": "The next whole number below.",
    "max": "The largest of two numbers or more.",
    "min": "The smallest of two numbers or more.",
    "sqrt": "The square root.",
    # starts
    "zeros": "All 0.",
    "ones": "All 1.",
    "normal": "Normal, with standard deviation 0.02.",
    "uniform": "Uniform from -1 to 1.",
    "positive": "Uniform from 0 to 1.",
    "kaiming_uniform": "Uniform within `1 / sqrt(fan-in)`, as LoRA has it.",
    "kaiming_normal": "Normal, with standard deviation `sqrt(2 / fan-in)`.",
}
"""Of each keyword, attribute of a site, function and start, by its spelling."""
