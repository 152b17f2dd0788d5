"""A vLLM plug-in that serves adapter folders without conversion, in an unmodified vLLM.

| module | |
|---|---|
| `plugin` | the functions that vLLM's entry points call |
| `resolver` | finds an adapter by name in a folder of adapters |
| `folder` | reads an adapter folder and checks it against the served base |
| `base` | warns of adapters that were saved on another base |
| `plain` | writes an adapter as plain LoRA, for servers without compact mode |
| `compact` | adapters of known plans: the slots hold only their tensors |
| `memory` | replaces the tensors of a loaded adapter from memory |
| `private` | all uses of vLLM's private names |
"""
