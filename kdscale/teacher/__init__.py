"""The teacher: trained under ZeRO, or loaded; then run over the corpus to fill the cache."""
