"""The one exception that users are meant to read."""


class HyperJaxError(Exception):
    """Something the user can mend: a file, a field or a name, and what was expected.

    The scripts print its message without a traceback and exit with 2.
    """


def unknown(kind: str, name: object, known) -> HyperJaxError:
    """The error for a name that is not among `known`."""
    return HyperJaxError(f"unknown {kind} {name!r}; there is: {', '.join(map(str, sorted(known)))}")
