"""Many adapters at once: mixed batches, joint training, and the arithmetic of a server.

| module | |
|---|---|
| `bank` | the tensors of many adapters as rows of one tensor |
| `grouping` | assignment of rows and tokens to adapters |
| `batches`, `rows`, `experts`, `read_rows` | mixed batches of a transformers model |
| `recomputed` | factors recomputed in the backward |
| `layer` | updates of a server's layer |
"""
