"""Keep passwords and tokens out of everything that others see: terminal, logs, MLflow, files of a run."""

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
SHORTEST = 8  # a shorter value of a variable would be found by chance in ordinary text

# user:password@ of a URI. A password may hold any sign, so it ends at the last @: too much is hidden before too little.
_USERINFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.\-]*://)(?P<user>[^\s:/?#]*):(?P<password>\S*)@", re.IGNORECASE)
_TOKEN = re.compile(r"(?P<scheme>\bhttps?://)[^\s:/?#@]+@", re.IGNORECASE)
_WORDS = (
    r"passw(?:or)?d|(?<![a-z])pass(?![a-z])|pwd|secret|token|credential|signature|"
    r"api_?key|access_?key|account_?key|private_?key"
)
_QUERY = re.compile(rf"(?P<name>[?&;][^\s=&;]*?(?:{_WORDS}|\bsig)[^\s=&;]*=)[^\s&;#'\"]+", re.IGNORECASE)
_VARIABLE = re.compile(_WORDS, re.IGNORECASE)


def redact_uri(text: str) -> str:
    """Return a text with ``***`` in place of the passwords and tokens in its URIs."""
    text = _USERINFO.sub(_hide, text)
    text = _TOKEN.sub(rf"\g<scheme>{HIDDEN}@", text)
    return _QUERY.sub(rf"\g<name>{HIDDEN}", text)


def _hide(found: re.Match[str]) -> str:
    """Hide a password; without a password, the text in the user's place is a token, and is hidden."""
    return f"{found['scheme']}{found['user'] if found['password'] else HIDDEN}:{HIDDEN}@"


def redact(text: str) -> str:
    """Return a text for people to read, without secrets in its URIs and without secrets of the environment."""
    for secret in sorted(set(_known()), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return redact_uri(text)


def redact_settings(value: Any) -> Any:
    """Return settings (texts, numbers, and mappings and lists of them) without the secrets in their URIs."""
    if isinstance(value, str):
        return redact_uri(value)
    if isinstance(value, dict):
        return {key: redact_settings(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [redact_settings(one) for one in value]
    return value


def is_redacted(text: str) -> bool:
    """Tell whether `redact_uri` has removed a secret from a URI."""
    return "://" in text and (f"{HIDDEN}@" in text or f"={HIDDEN}" in text)


def _known() -> Iterator[str]:
    """Yield the secrets of the environment: variables that are called so, and passwords in variables that are URIs."""
    for name, value in os.environ.items():
        if _VARIABLE.search(name) and not value.startswith(("/", "~")):  # not the path of a file that holds one
            found = [value]
        elif "://" in value:
            found = [password for match in _USERINFO.finditer(value) for password in (match[3], unquote(match[3]))]
        else:
            continue
        yield from (one for one in found if len(one) >= SHORTEST)
