"""How rows come back in any order: blocks through memory and a local disk, batches, epochs."""
