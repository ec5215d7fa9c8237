"""Which parts of MaIL matter: what `benchmarks.ablate` runs, keeps and writes down."""
