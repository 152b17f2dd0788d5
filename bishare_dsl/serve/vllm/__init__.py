"""A plug-in of vLLM: adapter folders are served as they are, by an unmodified vLLM.

| module | |
|---|---|
| `plugin` | what vLLM's entry points call; the settings; the versions that are served |
| `resolver` | an adapter by its name, from a folder of folders |
| `folder` | an adapter folder, read and held against the base that vLLM serves |
| `expanded` | any adapter: effective factors, made when it becomes active |
| `compact` | adapters of one plan: the slots hold its tensors and nothing else |
| `memory` | the tensors of a loaded adapter, written from memory |
| `private` | every name of vLLM's that is not public |
"""
