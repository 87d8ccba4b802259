"""Training of teacher and student alike: parallel back ends, the loop, checkpoints."""
