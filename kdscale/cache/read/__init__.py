"""How rows come back in any order: chunks through memory and a local disk, batches, epochs."""
