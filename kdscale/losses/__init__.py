"""Losses: divergences on cached targets, and output head and loss fused into one."""
