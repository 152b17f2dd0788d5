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
