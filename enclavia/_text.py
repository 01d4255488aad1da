"""Text that a peer chose, made fit for messages, log lines and notebooks.

Decides which characters are shown as they are, and where a text is cut. Calls: nothing of the
package. Locks: none.
"""

from __future__ import annotations

from typing import Final

__all__ = ["age_of", "shown", "table_of", "text_of"]

_LIMIT: Final = 1000


def shown(text: str, limit: int = _LIMIT) -> str:
    """What can be seen stays as it is; line ends, other controls, format characters (those that
    change the direction of writing among them), private characters and surrogates become escapes
    (``\\n``, ``\\x1b``, ``\\u202e``). So nobody who chose a part of a message can make it look
    like another line of a log, or move a terminal's cursor. Cut after ``limit`` characters.

    The C core does the same for its messages (csrc/base/utf8.h)."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def table_of(caption: str, rows: list[tuple[str, str]]) -> str:
    """A table in HTML, for notebooks. Everything in it is escaped."""
    import html  # of use in notebooks only, and slow to import

    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'><code>{html.escape(value)}</code></td></tr>"
        for name, value in rows
    )
    return f"<table><caption>{html.escape(caption)}</caption>{cells}</table>"


def age_of(seconds: float) -> str:
    """How long ago something was, as people say it: its largest unit."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{max(0, int(seconds))} s ago"


def text_of(error: BaseException) -> str:
    """The text of an error of the caller's own class, which may fail to have one."""
    try:
        return str(error)
    except Exception:
        return "(its text cannot be had)"


def _escaped(character: str) -> str:
    if character.isspace() and ord(character) > 0xA0 and ord(character) not in (0x2028, 0x2029):
        return character  # a wide or narrow space
    return character.encode("unicode_escape").decode("ascii")
