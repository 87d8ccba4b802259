"""Which rows a step meets, and what changes over training: pure functions of the step."""
