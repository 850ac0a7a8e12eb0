"""``restrain data pack``: images in any of the usual layouts, written as shards with their index."""
