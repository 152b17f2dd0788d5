"""BS8xx: evaluating adapters, and generating with one."""
