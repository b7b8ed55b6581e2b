"""The parts of a self-contained HTML page: figures inside it, tables that scroll, one style for screen, dark and paper (card C7).

Every text goes through `html.escape`: class names, paths and configurations are the user's.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from project.extras.look.figures import pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
DPI = 144  # shown at 96: sharp on the finer screens of phones
STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --panel: #f6f8fa;
  --link: #0550ae; --warn: #fff8c5; --warnline: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161c; --text: #e6edf3; --soft: #a5afba; --line: #3a424c;
  --panel: #1c222b; --link: #79b8ff; --warn: #3a2f0b; --warnline: #d4a72c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 56rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .7rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
a { color: var(--link); }
p { margin: .5rem 0; max-width: 46rem; }
.soft, footer, figcaption { color: var(--soft); }
nav ul { margin: .3rem 0; padding: 0; list-style: none; columns: 14rem; }
nav li { padding: .15rem 0; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; padding: 0; list-style: none; }
.cards li { flex: 1 1 11rem; padding: .8rem 1rem; background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; }
.cards b { display: block; font-size: 1.35rem; line-height: 1.4; }
.cards span { display: block; }
figure { margin: .8rem 0 1.2rem; }
.picture { display: inline-block; max-width: 100%; overflow-x: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .4rem; padding: .4rem; }
.picture img { display: block; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; max-width: 100%; margin: .6rem 0; }
.picture:focus-visible, .scroll:focus-visible, pre:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; min-width: 4rem; }
td { max-width: 24rem; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; white-space: nowrap; }
.missing, .warning { padding: .5rem .8rem; border-left: .25rem solid var(--line); background: var(--panel); }
.warning { background: var(--warn); border-color: var(--warnline); }
pre { overflow: auto; padding: .8rem; background: var(--panel); border: 1px solid var(--line); border-radius: .4rem;
  font-size: .85rem; overflow-wrap: normal; }
code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .9em; }
details > summary { cursor: pointer; color: var(--link); padding: .3rem 0; }
@media (max-width: 40rem) { .picture.wide img { max-width: none; width: 34rem; } }
@media print { :root { --ground: #fff; --text: #000; --soft: #444; --line: #bbb; --panel: #fff; --link: #000; --warn: #fff; }
  body { max-width: none; padding: 0; font-size: 10.5pt; } nav { display: none; }
  h2, h3 { break-after: avoid; } figure, tr, .cards li { break-inside: avoid; }
  .picture, .scroll { overflow: visible; } .picture { border: 0; padding: 0; } .picture img { max-height: 22cm; width: auto; }
  details:not([open]) { display: none; } pre { white-space: pre-wrap; } }
"""


@dataclass(frozen=True)
class Section:
    """A chapter of the page; `body` is HTML."""

    name: str  # its anchor
    title: str
    body: list[str]


def page(title: str, lead: list[str], sections: Sequence[Section], footer: str) -> str:
    """The whole file. Its policy forbids any request and any script, whatever the content.

    Args:
        title: Heading and name of the page, plain text.
        lead: HTML above the table of contents.
        sections: The chapters.
        footer: Plain text; the only place for a date.
    """
    contents = "".join(f'<li><a href="#{part.name}">{escape(part.title)}</a></li>' for part in sections)
    chapters = [
        f'<section aria-labelledby="{part.name}">\n<h2 id="{part.name}">{escape(part.title)}</h2>\n'
        + "\n".join(part.body)
        + "\n</section>"
        for part in sections
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            f"<header>\n<h1>{escape(title)}</h1>",
            *lead,
            f'</header>\n<nav aria-label="Contents">\n<ul>{contents}</ul>\n</nav>\n<main>',
            *chapters,
            f"</main>\n<footer>\n<p>{escape(footer)}</p>\n</footer>",
            "</body>",
            "</html>\n",
        ]
    )


def heading(text: str) -> str:
    """A title inside a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; kind: soft, missing or warning."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def missing(what: str, why: str) -> str:
    """What is not on the page, and why."""
    return paragraph(f"{what} left out: {why}", "missing")


def cards(rows: Sequence[tuple[str, str, str]]) -> str:
    """The few numbers that count: (name, value, what goes with it)."""
    items = (
        f"<li><span>{escape(a)}</span><b>{escape(b)}</b><span class=soft>{escape(c)}</span></li>" for a, b, c in rows
    )
    return f'<ul class="cards">{"".join(items)}</ul>'


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table that scrolls in a box of its own; the first `text_columns` columns are text, the rest numbers."""

    def cells(tag: str, row: Sequence[str]) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        kinds = ("" if i < text_columns else ' class="number"' for i in range(len(row)))
        return (
            "<tr>"
            + "".join(f"<{tag}{scope}{kind}>{escape(str(cell))}</{tag}>" for cell, kind in zip(row, kinds, strict=True))
            + "</tr>"
        )

    body = "\n".join(cells("td", row) for row in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>\n'
        f"<caption>{escape(caption)}</caption>\n"
        f"<thead>{cells('th', head)}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def code(text: str, label: str) -> str:
    """A block that keeps its lines."""
    return f'<pre tabindex="0" aria-label="{escape(label)}"><code>{escape(text)}</code></pre>'


def details(summary: str, body: str) -> str:
    """Closed until it is clicked; paper leaves it out."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{body}\n</details>"


def picture(make: Callable[[], "Figure"], what: str, says: str, caption: str = "") -> str:
    """A figure inside the page, or the reason why it is none.

    Args:
        make: Draws it.
        what: Its kind, such as "Confusion matrix".
        says: Its main finding in words, for those who cannot see it.
        caption: How to read it.
    """
    try:
        drawn = make()
        width, height = (round(96 * side) for side in drawn.get_size_inches())
        data = encoded(drawn)
    except Exception as error:  # of whatever kind: the rest of the page is worth more
        return missing(what, f"it cannot be drawn ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    wide = " wide" if width > 560 else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><div class="picture{wide}" tabindex="0" role="group" aria-label="{escape(what)}">'
        f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(f"{what}: {says}")}">'
        f"</div>{below}</figure>"
    )


def encoded(figure: "Figure") -> str:
    """The figure as PNG with a palette, which takes a third of the bytes, in base64."""
    image = Image.fromarray(pixels(figure, DPI)).quantize(256, Image.Quantize.MEDIANCUT)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
