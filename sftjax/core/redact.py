"""Secrets stay out of everything that is written down or printed: one place that takes them out."""

import os
import re

SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_TOKEN",
    "WANDB_API_KEY",
    "KAGGLE_KEY",
)
"""Environment variables whose values are secrets."""

HIDDEN = "[redacted]"

_PATTERNS = (
    (re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{16,}"), HIDDEN),  # tokens of the Hub
    (re.compile(r"(?<=://)[^/\s@:]+(:[^/\s@]*)?@"), f"{HIDDEN}@"),  # https://user:password@host
    (
        re.compile(
            r"(?i)\b((?:(?:access|auth|api)_?(?:token|key)|token|secret|password)=)[^\s&\"']{8,}"
        ),
        rf"\1{HIDDEN}",  # ?token=... of a URL
    ),
    (re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{16,}"), rf"\1{HIDDEN}"),
)


def redact(text: str) -> str:
    """Return a text without tokens, credentials in URLs, or the values of `SECRETS`.

    Text without any comes back as it is. What is written into a run's folder, a model card, a log
    or an error of the command line goes through here.

    >>> redact("could not open https://ann:s3cret@host/x with hf_" + "a1" * 17)
    'could not open https://[redacted]@host/x with [redacted]'
    >>> redact("a sentence about a token and a key")
    'a sentence about a token and a key'
    """
    for name in SECRETS:
        if len(value := os.environ.get(name, "")) >= 8:
            text = text.replace(value, HIDDEN)
    for pattern, put in _PATTERNS:
        text = pattern.sub(put, text)
    return text
