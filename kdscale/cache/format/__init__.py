"""What is stored and how: records, shards as Arrow files, entropy-coded ids, checked reads."""
