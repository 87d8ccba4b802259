"""What is stored and how: records, units as Arrow files, entropy-coded ids, checked reads."""
