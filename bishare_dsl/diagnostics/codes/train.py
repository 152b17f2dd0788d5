"""BS73x to BS79x: training."""
