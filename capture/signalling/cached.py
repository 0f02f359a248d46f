"""A property that is worked out once, when it is first asked for.

functools.cached_property takes a lock each time (until Python 3.12); of the eight that a SIP
message is asked for, half the cost was that. These objects never leave their thread.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class cached(Generic[T]):  # noqa: N801 - named as the decorator that it is
    """Decorates a method of a class that has a __dict__: there the value stays."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._name = make.__name__
        self.__doc__ = make.__doc__

    def __get__(self, instance: Any, owner: type) -> T:
        # Found there from then on, before this is: a descriptor without __set__ comes second.
        value = instance.__dict__[self._name] = self._make(instance)
        return value
