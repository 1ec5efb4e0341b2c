"""What checks the annotations of the package's functions in tests; conftest.py installs it."""

from beartype import beartype


def checked(function):
    """The function with its arguments and result checked; but for `__init__`: JAX rebuilds its trees with any leaves."""
    return function if function.__name__ == "__init__" else beartype(function)
