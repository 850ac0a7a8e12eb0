"""What makes a set of shards still a WebDataset: stages of one's own, and our order as the first stage of a pipeline."""
