"""Curriculum: which sequences a step uses, and scheduled values; pure functions of the step."""
