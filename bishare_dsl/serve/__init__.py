"""Serving adapters: many of them beside one base.

| module | |
|---|---|
| `terms` | where the factors of a plan's terms lie in the numbers of an adapter |
| `bank` | the slots: the numbers of many adapters, a row each |
| `batch` | which tokens of a batch belong to which slot |
| `layer`, `tiles` | what one layer adds to them, in torch |
| `kernels` | the same in Triton, for a GPU |
| `vllm` | a plug-in of vLLM |
"""
