"""Fields that fingerprints leave out: always, or while they have their default."""

from kdscale.config.base import Config
from kdscale.config.operational import Later, Operational, recipe
from kdscale.config.student import StudentConfig


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
