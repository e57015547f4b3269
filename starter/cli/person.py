"""The person at this machine."""

import getpass


def user_name() -> str:
    """Return the name under which the person is logged in, or "" where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user
        return ""
