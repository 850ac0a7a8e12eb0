"""Transformers: one block, three families."""
