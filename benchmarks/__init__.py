"""Measurements that results and decisions rest on; each is one command and says how it is run."""
