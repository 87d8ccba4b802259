"""Plan: tokens, memory, time, bytes and money of a run, worked out before anything starts.

    config, corpus -> tokens ─┐
    config -> shapes ─────────┼─> memory, time, bytes, requests -> money, break-even, scaling
    hardware, calibration ────┘

Pure functions of `inputs.PlanInputs`. Each formula stands in its function's docstring, and all of
them with their sources in docs/plan.md.
"""
