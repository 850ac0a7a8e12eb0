"""Still a WebDataset: stages of one's own, and our order as the first stage of webdataset's pipelines."""
