"""Train an adapter: data, the Trainer, checkpoints and the record of a run."""
