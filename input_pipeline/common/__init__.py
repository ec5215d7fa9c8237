"""What every other folder may use; imports nothing of ours."""
