"""The runs and tables of `benchmarks.ablate`."""
