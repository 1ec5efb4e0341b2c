"""What a method declares about itself: its search space, its published settings, its recipe, its name."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Literal, cast

from cujax.methods.base import Method
from cujax.methods.search_space import SearchSpace


def search_space_of(kind: type[Method]) -> SearchSpace | None:
    """The search space of a method; None if there is nothing to tune."""
    return getattr(kind, "search_space", None)


def published_settings(kind: type[Method], task: Literal["class", "samples"]) -> dict[str, Any]:
    """The published settings of a method that differ from its defaults."""
    official: Callable[[str], Method] | None = getattr(kind, "official", None)
    if official is None:
        return {}
    settings, defaults = (asdict(cast(Any, method)) for method in (official(task), kind()))
    return {name: value for name, value in settings.items() if value != defaults[name]}


def reproduction_settings(kind: type[Method], task: Literal["class", "samples"]) -> Mapping[str, Any] | None:
    """The settings of a method's reproduction on a task that differ from its defaults; None if it has none."""
    by_task: Mapping[str, Mapping[str, Any]] = getattr(kind, "reproduction", {})
    return by_task.get(task)


def with_recipe(method: Method, training: Any) -> Method:
    """The method, with the original's recipe if it trains from scratch and has no recipe of its own."""
    if getattr(method, "training", training) is not None:
        return method
    return cast(Method, replace(cast(Any, method), training=training))


def is_reference(kind: type[Method]) -> bool:
    """Whether other methods are compared with this one, so that it has no row of its own."""
    return getattr(kind, "is_reference", False)


def method_name(method: Method) -> str:
    """The name of a method's class, or of the function if it is one."""
    return getattr(method, "__qualname__", type(method).__name__)
