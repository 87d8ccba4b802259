"""Student: its targets, losses and curriculum, and its training from the cache."""
