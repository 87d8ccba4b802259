"""An unknown key is answered with the field that may be meant, of a file and of an override."""

import pytest

from kdscale.config import load_kube_options, parse_config
from kdscale.config.starter import starter_yaml
from kdscale.errors import KdscaleError
from kdscale.share import CLUSTERS


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("distil.training.steps=3", "distil: unknown key (of --set); did you mean distill?"),
        ("data.seqlen=3", "data.seqlen: unknown key (of --set); did you mean seq_len?"),
        # A field of another section is named with its path, of the nearest one.
        (
            "distill.steps=3",
            "distill.steps: unknown key (of --set); did you mean distill.training.steps?",
        ),
        ("learning_rate=3", "; did you mean teacher.training.optimiser.learning_rate?"),
        # In a union, the fields of the member that was chosen.
        ("cache.codec.kk=3", "; did you mean k?"),
        ("distill.curriculum={lengths: null}", "did you mean length?"),
        ("data.evaluate={a: {kind: text, path: x, limits: 3}}", "did you mean limit?"),
        ("zzz=3", "zzz: unknown key (of --set)\n"),
    ],
)
def test_a_similar_field_is_named(override: str, line: str) -> None:
    with pytest.raises(KdscaleError) as caught:
        parse_config(starter_yaml(), [override])
    assert line in f"{caught.value.problem}\n"


def test_a_key_of_the_file_is_not_taken_for_an_override() -> None:
    text = starter_yaml().replace("seed: 0", "sead: 0")
    with pytest.raises(KdscaleError, match=r"sead: unknown key; did you mean seed\?"):
        parse_config(text, ["distill.training.steps=3"])


def test_fields_of_a_kubernetes_cluster_too() -> None:
    with pytest.raises(KdscaleError, match=r"head\.cpu: .*did you mean cpus\?"):
        load_kube_options(CLUSTERS["kuberay"], ["head.cpu=3"])
