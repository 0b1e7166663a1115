"""`python -m digits plots`: DVC's page of plots, with what is the same in several results once."""

import re
from argparse import ArgumentParser
from pathlib import Path

from digits.files import md5, write_text
from digits.tools.seeds import dvc

PAGE = Path("dvc_plots/index.html")
CELL = (
    r'<div\s+style="border:1px dotted[^>]*>\s*<p>([^<]*)</p>\s*<img src="([^"]+)">\s*</div>\s*'  # a revision's figure
)


def main(parser: ArgumentParser, words: list[str]) -> None:
    """Draw curves, mistakes and figures as a page, of several results side by side: `dvc plots diff`, with figures that
    are the same in several of them shown once. Print a link to it.
    """
    parser.add_argument("revisions", nargs="*", default=["workspace"], help="revisions (default: the folder as it is)")
    dvc("plots", "diff", "--out", PAGE.parent.as_posix(), *parser.parse_args(words).revisions)
    write_text(PAGE, once(PAGE.read_text(encoding="utf-8"), PAGE.parent))
    print(PAGE.resolve().as_uri())


def once(html: str, folder: Path) -> str:
    """Return a page of DVC's that shows the equal ones of a figure once, under the names of all their revisions."""

    def merged(figure: re.Match[str]) -> str:
        names: dict[str, list[str]] = {}
        cells: dict[str, str] = {}
        for cell in re.finditer(CELL, figure[0]):
            content = md5(folder / cell[2])
            names.setdefault(content, []).append(cell[1])
            cells.setdefault(content, cell[0])
        return "".join(
            text.replace(f"<p>{names[content][0]}</p>", f"<p>{', '.join(names[content])}</p>")
            for content, text in cells.items()
        )

    return re.sub(f"(?:{CELL})+", merged, html)
