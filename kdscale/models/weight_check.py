"""Whether the weights of an existing model are those of its config, from headers alone."""

from pathlib import Path
from typing import Any

from kdscale.errors import KdscaleError
from kdscale.models.checkpoint_tensors import StoredTensors
from kdscale.models.init.student_init import Plan
from kdscale.models.init.tensors import TensorFiles
from kdscale.models.load import lacks_weights
from kdscale.models.weight_headers import weight_headers


def check_weights(
    source: str, revision: str | None, config: Any, *, trained_further: bool = False
) -> None:
    """Refuse the model at `source` (a folder, a store's URL or a hub name) where loading it with
    the transformers `config` would fail. Reads headers only.

    One to be `trained_further` may lack tensors, such as a classifier's head: they start at random.
    KdscaleError names a file that is damaged or missing, or the first tensor that does not fit.
    """
    headers = weight_headers(source, revision)
    if getattr(config, "quantization_config", None) is not None:
        return  # what its tensors become is the quantiser's to say
    stored = StoredTensors(config, headers)
    for name, shape in stored.shapes.items():
        wanted = stored.wanted.get(name, shape)
        if shape != wanted:
            raise KdscaleError(
                f"The weights of {source!r} do not fit its config: {name!r} is {list(shape)} in "
                f"{', '.join(stored.files_of(name))}, and the config asks for {list(wanted)}.",
                "Take config.json and *.safetensors from the same model; a classifier keeps its "
                "number of classes.",
            )
    missing = stored.missing()
    if missing and not (trained_further and stored.shapes):
        raise lacks_weights(source, config, missing)


def check_sources(plan: Plan, source: str, revision: str | None, teacher: Any) -> None:
    """Refuse a student that starts from tensors which the teacher's files at `source` do not have,
    or have in quantised form. `teacher` is its transformers config. Reads headers only, and where
    the files are in a local folder also two tensors that the config takes for one."""
    names = [each.tensor for each in plan.sources.values()]
    folder = Path(source).expanduser()
    if not names:
        return
    if "://" not in source and folder.is_dir():
        TensorFiles(folder, teacher).check(names)
    else:
        StoredTensors(teacher, weight_headers(source, revision)).check(names)
