"""What the pages of raycl have in common: one HTML file each, without references."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from raycl.errors import RayclError

Sections = Iterable[tuple[str, Callable[[], str]]]

CSS = """
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #1f2328; --muted: #666c75;
  --rule: #e2e2dc; --accent: #2d5f96; --wash: #f4f4f0; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #e4e4e0; --muted: #989ea7; --rule: #2f3338;
    --accent: #86b1e2; --wash: #1e2125; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  -webkit-text-size-adjust: 100%; }
main { max-width: 60rem; margin: 0 auto; padding: 3.5rem 1.5rem 4rem; }
h1 { margin: 0; font-size: 2rem; font-weight: 600; line-height: 1.2; letter-spacing: -0.015em;
  overflow-wrap: anywhere; }
h2 { margin: 3.25rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--rule);
  font-size: 1.15rem; font-weight: 600; letter-spacing: -0.005em; }
.kicker { margin: 0 0 0.4rem; color: var(--muted); font-size: 0.85rem; }
.note, figcaption { color: var(--muted); font-size: 0.875rem; }
.note { margin: 0.75rem 0 0; max-width: 42rem; }
.alarm { margin: 0 0 1.25rem; padding-left: 0.9rem; border-left: 3px solid #c8504b;
  max-width: 42rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr));
  gap: 1rem 1.5rem; margin: 1.75rem 0 0; }
dl div { min-width: 0; }
dl.wide { display: block; margin-top: 1.25rem; }
dl.wide div { display: grid; grid-template-columns: 5.5rem 1fr; align-items: baseline; }
dt { color: var(--muted); font-size: 0.8125rem; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { width: 100%; max-width: 42rem; border-collapse: collapse;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.45rem 0 0.45rem 2rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
th[rowspan], tbody th { padding-left: 0; text-align: left; }
thead th { color: var(--muted); font-size: 0.875rem; font-weight: 400; vertical-align: bottom; }
thead tr:first-child th { border-bottom: 0; padding-bottom: 0; }
thead tr:first-child th:not(:first-child) { color: var(--ink); }
tbody th { font-weight: 400; }
td.best { font-weight: 700; color: var(--accent); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: 1.75rem 2.5rem; }
figure { margin: 0; min-width: 0; }
.curves figcaption { display: flex; align-items: baseline; gap: 0.5rem; }
.curves figcaption b { color: var(--ink); font-size: 0.9375rem; font-weight: 600;
  white-space: nowrap; }
.curves figcaption output { margin-left: auto; color: var(--ink); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
svg * { stroke-linejoin: round; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
.map { display: grid; grid-template-columns: minmax(0, 38rem) minmax(8rem, 1fr); gap: 2rem;
  align-items: center; }
.map svg text { font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 3px;
  stroke-linejoin: round; }
.legend { margin: 0; padding: 0; list-style: none; font-size: 0.875rem; columns: 7rem; }
.legend li { display: flex; align-items: baseline; gap: 0.5rem; break-inside: avoid;
  overflow-wrap: anywhere; }
.legend i { flex: none; width: 0.65rem; height: 0.65rem; border-radius: 50%; }
.views { display: block; max-width: 100%; height: auto; border-radius: 3px; }
.note + .scroll { margin-top: 1.25rem; }
.trials { max-width: none; font-size: 0.875rem; }
.trials th, .trials td { padding-left: 1.25rem; }
.trials th:first-child { padding-left: 0; text-align: left; }
.trials thead tr:first-child th:not(:first-child) { color: var(--muted); }
summary { cursor: pointer; color: var(--accent); }
pre { margin: 1rem 0 0; padding: 1rem 1.25rem; overflow-x: auto; background: var(--wash);
  border-radius: 4px; font: 0.8125rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media (max-width: 44rem) { main { padding: 2rem 1.125rem 3rem; } h1 { font-size: 1.6rem; }
  dl { grid-template-columns: 1fr 1fr; } .map { grid-template-columns: minmax(0, 1fr); gap: 1rem; }
  th, td { padding-left: 0.9rem; font-size: 0.9375rem; }
  th { white-space: normal; } }
@media print { main { padding: 0; max-width: none; } h2, figure { break-after: avoid; }
  figure { break-inside: avoid; } }
"""


class Missing(Exception):
    """Why a section has nothing to show; the section says it instead."""


def html(title: str, header: str, sections: Sections) -> str:
    """A whole page.

    Args:
        title: of the window.
        header: HTML above the sections.
        sections: a heading each, and what makes the HTML under it or raises `Missing`.
    """
    body = []
    for heading, section in sections:
        try:
            content = section()
        except Missing as reason:
            content = f'<p class="note">{escape(str(reason))}</p>'
        body.append(f"<section>\n<h2>{heading}</h2>\n{content}\n</section>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # An empty icon keeps browsers from asking a server for one.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)} · raycl</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + header
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def write(path: Path, page: str) -> Path:
    """Writes a page whole, over an older one.

    Raises:
        RayclError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RayclError(
            f"{path} cannot be written ({error.strerror}); free some space or mend its permissions"
        ) from error
    return path


def items(facts: Mapping[str, Any], attribute: str) -> str:
    """A list of facts; those that are None are left out."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>\n"
        for name, value in facts.items()
        if value is not None
    )
    return f"<dl{attribute}>\n{items}</dl>\n" if items else ""


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
