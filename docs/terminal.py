"""Write the pictures of a run's screen in docs/images, at 80 and at 120 columns.

    make quickstart &  sleep 200; .venv/bin/python docs/terminal.py [RUN]

It shows the status that the run has at that moment.
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from kdscale.run.status import RunStatus, run_status
from kdscale.run.status_text import status_lines
from kdscale.store import open_store

DOCS = Path(__file__).parent
WIDTHS = (80, 120)


def main() -> None:
    """Draw the status at each width."""
    run = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"
    status = run_status(open_store(run))
    for width in WIDTHS:
        file = DOCS / "images" / f"terminal-{width}.svg"
        file.write_text(picture(status, width), encoding="utf-8")
        print(file)


def picture(status: RunStatus, width: int) -> str:
    """Return an SVG of the screen, in the reader's own font."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    for line in status_lines(status, width):
        console.print(Text(line, no_wrap=True, overflow="ellipsis"))
    drawing = console.export_svg(title=f"kdscale run, {width} columns", unique_id=f"t{width}")
    # Rich's fonts come from another server.
    return re.sub(r"\s*@font-face \{.*?\}", "", drawing, flags=re.DOTALL)


if __name__ == "__main__":
    main()
