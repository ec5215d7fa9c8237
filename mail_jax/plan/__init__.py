"""Estimates memory and step time on TPUs, from the text of the compiled program."""
