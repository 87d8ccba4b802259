"""Worker groups under Ray Train: the only package that imports `ray.train`.

`group` runs a stage's job on a group of ranks, `worker_main` runs in each of its processes,
`channel` connects the two, `ray_callbacks` reacts when Ray Train ends or resizes a group.
"""
