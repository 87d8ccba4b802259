"""Codec fidelity: what a cache's codec, and its alternatives, do to a student's gradient."""
