"""The lineage of the residual connection: eighteen claims of its literature, each shown by a small run.

``table.py`` lists them with what is expected, written down before the runs; ``claims/`` has what runs; ``claim.py``
compares the two. ``restrain lineage`` is the command.
"""
