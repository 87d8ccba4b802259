"""Worker groups under Ray Train: the only package that imports `ray.train`.

`group` runs a stage's job on a group of ranks, `worker_main` is what each process runs around it,
`ray_callbacks` reacts when Ray Train ends or resizes a group.
"""
