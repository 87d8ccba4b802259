"""What a run will take, worked out before anything starts: pure functions from a config to figures.

    config, corpus -> tokens ─┐
    config -> shapes ─────────┼─> memory, time, bytes, requests -> money, break-even, scaling
    hardware, calibration ────┘

Each formula stands in its function's docstring, and all of them with their sources in docs/plan.md.
"""
