"""What teacher and student share when they train: parallel back ends, the loop, checkpoints."""
