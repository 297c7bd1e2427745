"""What labels, domains, splits and files are called: the same on every machine, in every terminal and file."""

import os
import unicodedata

# what folders and files of given splits are called, in any case
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
ONE_DOMAIN = "all"  # the domain of data that names none

_ESCAPED = {"Cc", "Cs", "Zl", "Zp"}  # control characters, bytes that are not UTF-8, separators of lines


def composed(name: str) -> str:
    """Return a name in Unicode's NFC: what a Mac and Linux write differently becomes one name."""
    return unicodedata.normalize("NFC", name)


def printable(name: str) -> str:
    r"""Write a file's name so that it is UTF-8 and one line; different names stay different.

    A byte that is not UTF-8 becomes ``\xff``, a line's end ``\x0a``, a backslash two of them.
    """
    return "".join(map(_escape, name)) if not name.isprintable() or "\\" in name else name


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if unicodedata.category(character) not in _ESCAPED:
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
