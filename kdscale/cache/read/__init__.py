"""Reading a cache, from a training's batch down to the store.

1. `loader`: CacheLoader reads the batches of coming steps ahead, a rank's share of each. `order`
   gives the batches of shuffled epochs; a curriculum's sampler may give them instead.
2. `reader`: CacheReader copies the sequences of a batch out of their chunks. `concat` reads several
   caches as one, `subset` some sequences of one.
3. `chunk_cache`: decoded chunks in memory, fetched in parallel, each once, within a budget.
4. `disk_cache`: decoded chunks as files that are mapped, shared by a machine's processes.
5. `chunk_store`: finds a chunk by arithmetic, fetches, verifies and decodes it.
"""
