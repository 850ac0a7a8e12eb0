"""Token sets for language models: text packed into shards of tokens, and the source and loader that read them.

`packing` makes a set, `source` opens one, `loader` deals its windows out in the order of any other set.
"""
