"""Fields that fingerprints leave out: always, or while they have their default."""

from kdscale.config import fingerprint, parse_config
from kdscale.config.base import Config
from kdscale.config.operational import Later, Operational, recipe
from kdscale.config.student import StudentConfig
from kdscale.share import EXAMPLES


class Inner(Config):
    """A section with a later field."""

    size: int = 1
    later: Later[int | None] = None


class Outer(Config):
    """A section with all kinds of fields."""

    inner: Inner = Inner()
    workers: Operational[int] = 2
    section: Later[Inner | None] = None


def test_later_fields_are_left_out_while_they_have_their_default() -> None:
    assert recipe(Outer(workers=8)) == {"inner": {"size": 1}}
    assert recipe(Outer(inner=Inner(later=3))) == {"inner": {"size": 1, "later": 3}}
    assert recipe(Outer(section=Inner())) == {"inner": {"size": 1}, "section": {"size": 1}}


def test_a_student_of_its_teachers_layers_has_the_recipe_of_before_load_existed() -> None:
    student = StudentConfig.model_validate({"teacher_layers": [0, 2]})
    assert recipe(student) == {
        "model": None,
        "teacher_layers": [0, 2],
        "width": None,
        "copy_embeddings": False,
        "tie_embeddings": None,
    }
    loaded = recipe(StudentConfig.model_validate({"load": "some/model", "layers": [1]}))
    assert loaded["load"] == "some/model"
    assert loaded["layers"] == [1]
    assert "revision" not in loaded


def test_outputs_of_runs_from_before_later_fields_keep_their_names() -> None:
    text = EXAMPLES["quickstart"].read_text(encoding="utf-8")
    config = parse_config(text)
    found = {
        stage: fingerprint(stage, recipe(getattr(config, stage)))
        for stage in ("teacher", "distill", "evaluate")
    }
    # As version 0.1.0 of before `load`, `lora` and `tokenizer` computed them.
    assert found == {
        "teacher": "2e1b1d36e5d20d0c",
        "distill": "5d54bd181cfa0b34",
        "evaluate": "d016ebe8093eb71c",
    }
    student = "distill.student={teacher_layers: [0, 2], width: {hidden_size: 64}}"
    assert fingerprint("distill", recipe(parse_config(text, [student]).distill)) == (
        "f81d0f18ec8c9cbc"
    )
