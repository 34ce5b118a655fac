"""The data path: from shards to the batches of a rank."""
