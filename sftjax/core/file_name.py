"""A name from a file, or from a person, as one part of a path and nothing more."""

import re

_LONGEST = 80


def file_name(text: str) -> str:
    """Return a name that stays inside its folder, whatever the text was.

    Letters, digits, `.`, `_` and `-` stay; runs of anything else become one `-`. A name never
    begins with a dot, is never empty and has 80 characters at most.

    >>> file_name("bert/encoder/layer/5"), file_name("../../etc/passwd"), file_name("")
    ('bert-encoder-layer-5', 'etc-passwd', 'unnamed')
    """
    plain = re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)
    return plain.lstrip(".-")[:_LONGEST].rstrip(".-") or "unnamed"
