"""Teacher: trained or loaded, then run over the corpus to fill the cache."""
