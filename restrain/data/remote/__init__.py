"""Shards that lie behind http, s3 or gs: fetching with patience, and the cache of a node."""
