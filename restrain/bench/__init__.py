"""Measurements that a person starts: how fast the data come, and beside others' loaders."""
