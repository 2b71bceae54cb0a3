"""Who works at this terminal, for the audit."""

import getpass
import os


def actor() -> str:
    """The user's name; where an account has none, as in containers, its number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
