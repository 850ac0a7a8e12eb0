"""``restrain data pack``: images in whatever form they come, as tar shards with an index. No torch here.

A source module a layout lists the samples (`items.Listing`: keys, labels, and where the bytes are); `plan` permutes the
listing and cuts it into shards; `writing` makes a shard of its samples; `packing` does so for all, and goes on after a
kill by the journal of `record`.
"""
