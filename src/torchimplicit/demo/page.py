"""What a report is made of: one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from torchimplicit.demo.tables import Table


def page(title: str, *parts: str) -> str:
    """The whole file, with its style."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def equation(*parts: str) -> str:
    """Each part stays on one line; between parts the line may break."""
    return '<div class="equation">' + " ".join(f"<span>{part}</span>" for part in parts) + "</div>"


def plots(*svgs: str) -> str:
    return '<div class="plots">' + "".join(f"<div>{svg}</div>" for svg in svgs) + "</div>"


def table(content: Table) -> str:
    def cell(tag: str, i: int, text: str) -> str:
        kind = "prose" if i in content.prose_columns else "number"
        return f'<{tag} class="{kind}">{escape(text).replace(chr(10), "<br>")}</{tag}>'

    def row(tag: str, cells: Iterable[str]) -> str:
        return "<tr>" + "".join(cell(tag, i, text) for i, text in enumerate(cells)) + "</tr>"

    body = "\n".join(row("td", cells) for cells in content.rows)
    return (
        f'<div class="table"><p>{escape(content.title)}</p>'
        f'<div class="scroll"><table aria-label="{escape(content.title)}">'
        f"<thead>{row('th', content.columns)}</thead>\n<tbody>\n{body}\n</tbody></table></div></div>"
    )


def fact(value: str, meaning: str) -> str:
    return f'<div class="fact"><b>{value}</b><span>{meaning}</span></div>'
