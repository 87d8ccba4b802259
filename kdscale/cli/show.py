"""A report in the terminal."""


def show(markdown: str) -> None:
    """Print Markdown, rendered; an empty text prints nothing."""
    if not markdown:
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(markdown))
