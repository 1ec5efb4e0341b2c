"""Registries that other packages can extend: tables of named entries, plus those registered as entry points."""

import importlib.metadata
from collections.abc import Mapping


class Registry[Entry]:
    """Named entries of one kind.

    A package adds an entry with an entry point in its `pyproject.toml`, in the registry's group:

        [project.entry-points."cujax.methods"]
        mine = "my_package.my_method:MyMethod"

    Other packages cannot use the names of cujax itself.

    Args:
        kind: What an entry is, for messages, such as "method".
        group: The group of the entry points, such as "cujax.methods".
        own: The entries of cujax by name.
    """

    def __init__(self, kind: str, group: str, own: Mapping[str, Entry]) -> None:
        self._kind, self._group, self._own = kind, group, own

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._own, *self.others()})

    def others(self) -> list[str]:
        """The names that other packages registered, sorted."""
        return sorted(importlib.metadata.entry_points(group=self._group).names - self._own.keys())

    def find(self, name: str) -> Entry:
        """The entry with this name.

        Raises:
            ValueError: if there is none (the message lists the existing entries), or it cannot be loaded.
        """
        if name in self._own:
            return self._own[name]
        for entry_point in importlib.metadata.entry_points(group=self._group, name=name):
            try:
                return entry_point.load()
            except (ImportError, AttributeError) as error:
                raise ValueError(
                    f"{self._kind} {name!r} is registered as {entry_point.value}, which cannot be loaded: {error}"
                ) from error
        raise ValueError(f"{self._kind} {name!r} does not exist; choose one of {', '.join(self.names())}.")
