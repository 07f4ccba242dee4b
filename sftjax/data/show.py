"""Look at what is learned: the tokens of a row, coloured, in the terminal and in a notebook."""

import html
from typing import Any, NamedTuple

import numpy as np

from sftjax.data.chat import Chat

_LEARNED = "black on green3"
_HTML = "background:#9be29b;color:#000"


class Shown(NamedTuple):
    """Pieces of text, each learned or not; `print` it, or end a notebook's cell with it."""

    pieces: tuple[tuple[str, bool], ...]
    learned: int
    """Tokens that are learned."""
    tokens: int

    def __rich__(self) -> Any:
        """Return the text for a rich console."""
        from rich.text import Text

        text = Text()
        for piece, learned in self.pieces:
            text.append(piece, _LEARNED if learned else "dim")
        return text.append(f"\n({self.learned} of {self.tokens} tokens are learned)\n", "italic")

    def __str__(self) -> str:
        """Return the text coloured for a terminal."""
        from rich.console import Console

        console = Console(force_terminal=True, width=100, color_system="standard", highlight=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip("\n")

    def _repr_html_(self) -> str:
        """Return the text coloured for a notebook."""
        inside = "".join(
            # A mark, which is coloured even where a page's styles are taken out.
            f'<mark style="{_HTML}">{html.escape(piece)}</mark>' if learned else html.escape(piece)
            for piece, learned in self.pieces
        )
        return (
            f'<pre style="white-space:pre-wrap">{inside}</pre>'
            f"<p>{self.learned} of {self.tokens} tokens are learned</p>"
        )


def show(chat: Chat, row: int = 0) -> Shown:
    """Return a row as text in which what is learned is coloured.

    Args:
      chat: from `encode_chat`.
      row: which, counted from 0 among those that were kept.

    Raises:
      IndexError: if there is no such row.
    """
    if not 0 <= row < len(chat):
        raise IndexError(f"there are {len(chat)} rows, counted from 0, and no row {row}")
    ids, weights = chat[row]
    learned = weights > 0
    # Pieces and not tokens: a character may be made of several.
    borders = np.flatnonzero(np.diff(learned)) + 1
    pieces = [
        (chat.tokenizer.decode(part.tolist(), skip_special_tokens=False), bool(mask[0]))
        for part, mask in zip(np.split(ids, borders), np.split(learned, borders), strict=True)
    ]
    return Shown(tuple(pieces), int(learned.sum()), len(ids))
