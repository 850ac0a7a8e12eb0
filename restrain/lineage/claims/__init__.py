"""What runs for each claim: a function of a :class:`restrain.lineage.bench.Bench` to an Outcome, a file a family."""
