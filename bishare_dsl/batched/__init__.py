"""Many adapters at once: mixed batches, adapters that train together, and the arithmetic of a server.

| module | |
|---|---|
| `bank` | the tensors of many adapters as rows of one |
| `grouping` | whose adapter each row or token has |
| `batches`, `rows`, `experts`, `read_rows` | mixed batches of a model of transformers |
| `recomputed` | factors that a backward makes again |
| `layer`, `kernels` | what a layer of a server adds: in torch, and in Triton for a GPU |
"""
