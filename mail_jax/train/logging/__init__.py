"""What a run tells while it works, to people and to the programs that they watch it with."""
