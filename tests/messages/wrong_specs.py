"""Draw wrong specs as people write them: one slip each, in a spec that was right."""

import random
import re
from dataclasses import dataclass

from bishare_dsl.resources import shipped_specs

MODELS = ("llama-7b", "mixtral-8x7b", "qwen3-0.6b", "phi-4")
OWN = (
    ("spec mine\nparam r = 8\nlet attention = q_proj, k_proj, v_proj\ntarget attention, down_proj\nalpha 16\n"
    "share a per layer // 4, kind rank r where layer < 16\nshare b per module rank 2 where layer >= 16"),
    ("spec mine\ntarget q_proj, v_proj\ntrain norms\nscale alpha / rank\nalpha 2 * rank\n"
    "share a A per layer B per module rank 8 if layer > 15 else 4 via SS(slice = centre)"),
    ('spec mine\ntarget kind "*" except down_proj\ndropout 0.05\n'
    "share all per layer in 0..15, kind rank match kind { q_proj, k_proj: 8; else: 4 } via KE(size = 128)"),
    'spec mine\nuse "lora"\nreplace param r = 16\ntarget parent self_attn\n',
    ("spec mine\ntarget attention_inputs, mlp_downs\nshare low per model rank 4 via GT(gate_rank = 4) freeze A init B zeros\n"
    "share own per module where layer in {0, 4..7} or v_proj rank min(layer + 1, 8) gain out init 1"),
)  # fmt: skip
# What stands in other languages for a word or a sign of ours.
FOREIGN = {
    "rank": "r lora_r rank= dim",
    "target": "target_modules targets modules",
    "alpha": "lora_alpha alpha=",
    "dropout": "lora_dropout p",
    "scale": "scaling use_rslora",
    "share": "shared def group pool",
    "per": "by each for_each",
    "where": "if when layers_to_transform",
    "via": "with using transform",
    "param": "const var set let",
    "let": "var def param set",
    "spec": "name config",
    "use": "import include from",
    "replace": "set override",
    "train": "modules_to_save unfreeze",
    "except": "exclude not but exclude_modules",
    "freeze": "frozen requires_grad",
    "init": "init_lora_weights initialize",
    "model": "all global everything",
    "module": "each linear site all",
    "layer": "layers block depth i",
    "kind": "type name module_type",
    "parent": "module submodule",
    "in": "within is ==",
    "and": "&& & , also",
    "or": "|| | ,",
    "if": "when ?",
    "else": "otherwise : elif",
    "match": "switch case",
    "==": "= ===",
    "=": ": := ==",
    "//": "/ div",
    "..": "- : ... to",
    "{": "[ (",
    "}": "] )",
    "(": "[ {",
    ")": "] }",
    ";": ",",
    ":": "=> -> =",
    ",": "; and +",
    "<": "=< below",
    ">=": "=> at_least",
    "q_proj": "query q W_q attn self_attn wq",
    "v_proj": "value v c_attn wv",
    "down_proj": "mlp ffn fc2 w2 down",
    "norms": "layernorm norm LayerNorm bias lm_head_bias",
    "KE": "Kronecker kronecker ke",
    "SS": "slice Slice ss",
    "GT": "gate Gate LoRA",
    "zeros": "zero 0 gaussian",
    "size": "dim width rank",
}


@dataclass(frozen=True)
class Wrong:
    """A spec with a slip: what was done to it, and the model that it is held against."""

    slip: str
    text: str
    model: str


def draw(seed):
    """Yield wrong specs for ever; each is another one."""
    chance = random.Random(seed)
    bases = [
        *OWN,
        *OWN,
        *(_plain(path.read_text(encoding="utf-8")) for path in shipped_specs().values()),
    ]
    slips = (_swap, _drop, _double, _misspell, _foreign, _foreign, _other_name)
    seen = set()
    while True:
        base, slip = chance.choice(bases), chance.choice(slips)
        tokens = re.findall(r'"[^"\n]*"|\w+(?:\.\d+)?|\.\.|==|!=|[<>]=|//|\n|[^\w\s]', base)
        made = slip(tokens, chance)
        if made is None:
            continue
        what, tokens = made
        text = _joined(tokens)
        if text not in seen and text != _joined(re.findall(r'"[^"\n]*"|\S+|\n', base)):
            seen.add(text)
            yield Wrong(what, text, chance.choice(MODELS) if chance.random() < 0.3 else MODELS[0])


def _plain(text):
    """Leave comments out, and a line for each statement."""
    lines = (line.split("#")[0].rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line.strip())


def _joined(tokens):
    text = " ".join(tokens)
    text = re.sub(r" ?\n ?", "\n", text)
    return (
        re.sub(
            r" (?=[,;:)])|(?<=[(]) |(?<=\w) (?=\(\w+ =)|(?<=\d) (?=\.\.)|(?<=\.\.) ", "", text
        ).strip()
        + "\n"
    )


def _place(tokens, chance):
    return chance.choice([i for i, token in enumerate(tokens) if token != "\n"])


def _swap(tokens, chance):
    i = _place(tokens[:-1], chance)
    if "\n" in tokens[i : i + 2]:
        return None
    return f"swap {tokens[i]} {tokens[i + 1]}", [
        *tokens[:i],
        tokens[i + 1],
        tokens[i],
        *tokens[i + 2 :],
    ]


def _drop(tokens, chance):
    i = _place(tokens, chance)
    return f"drop {tokens[i]}", [*tokens[:i], *tokens[i + 1 :]]


def _double(tokens, chance):
    i = _place(tokens, chance)
    return f"double {tokens[i]}", [*tokens[:i], tokens[i], *tokens[i:]]


def _misspell(tokens, chance):
    words = [
        i for i, token in enumerate(tokens) if len(token) > 2 and token.replace("_", "").isalpha()
    ]
    i = chance.choice(words)
    word, j = tokens[i], chance.randrange(1, len(tokens[i]) - 1)
    wrong = chance.choice(
        [
            word[:j] + word[j + 1 :],
            word[:j] + word[j] + word[j:],
            word[:j] + word[j + 1] + word[j] + word[j + 2 :],
        ]
    )
    return None if wrong == word else (f"misspell {word}", [*tokens[:i], wrong, *tokens[i + 1 :]])


def _foreign(tokens, chance):
    known = [i for i, token in enumerate(tokens) if token in FOREIGN]
    kinds = sorted({tokens[i] for i in known})
    if not kinds:
        return None
    word = chance.choice(kinds)
    i = chance.choice([i for i in known if tokens[i] == word])
    other = chance.choice(FOREIGN[word].split(" "))
    return f"{word} is {other}", [*tokens[:i], other, *tokens[i + 1 :]]


def _other_name(tokens, chance):
    """Take a name that some other model, layer or spec has."""
    names = {
        "q_proj": "query_key_value Wqkv qkv_proj",
        "v_proj": "query_key_value c_attn",
        "down_proj": "fc2 w2 dense_4h_to_h router gate experts",
        "layer": "head num_layers n_layers token expert tower",
        "kind": "head width tower",
        "rank": "r lora_rank n",
        "8": "-8 0.5 8k many 1e3 0 100000",
        "16": "33 -1 99 16.5",
        "15": "32 -40 64",
        "module": "head weight matrix neuron",
        "128": "100 0 -1 big in",
        "A": "a C lora_A",
        "B": "b lora_B",
    }
    known = [i for i, token in enumerate(tokens) if token in names]
    if not known:
        return None
    i = chance.choice(known)
    other = chance.choice(names[tokens[i]].split(" "))
    return f"{tokens[i]} is {other}", [*tokens[:i], other, *tokens[i + 1 :]]
