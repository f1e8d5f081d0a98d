"""Between proto messages and domain values: total functions both ways, and nothing else."""
