"""Charts of equal data are drawn once: most of a page's time is Matplotlib's."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kdscale.report import pages


def _once(draw: Callable[..., Any]) -> Callable[..., Any]:
    drawn: dict[str, Any] = {}

    def remembered(*arguments: Any, **options: Any) -> Any:
        key = repr((arguments, options))
        if key not in drawn:
            drawn[key] = draw(*arguments, **options)
        return drawn[key]

    return remembered


@pytest.fixture(scope="package", autouse=True)
def charts_once() -> Iterator[None]:
    """Let pages reuse the charts of others."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("line_chart", "reliability_chart"):
            patch.setattr(pages, name, _once(getattr(pages, name)))
        yield
