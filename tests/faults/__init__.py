"""Fault injection: small runs are disturbed again and again, and each has to end as was promised."""
