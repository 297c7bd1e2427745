"""Names of labels, domains, splits and files, written alike on every machine, in every terminal and file."""

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
    """Return a name in Unicode's NFC, so that a name is the same whether a Mac or Linux wrote it."""
    return unicodedata.normalize("NFC", name)


def printable(name: str) -> str:
    r"""Return a file's name as one line of UTF-8; different names stay different.

    A byte that is not UTF-8 becomes ``\xff``, a line break ``\x0a``, a backslash two backslashes.
    """
    return "".join(map(_escape, name)) if not name.isprintable() or "\\" in name else name


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if unicodedata.category(character) not in _ESCAPED:
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
