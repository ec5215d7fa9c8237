"""Fault injection: disturbs small runs, each of which has to end as documented."""
