"""The run-time type checker of the tests: beartype, with an int where a float is asked for, as every type checker has it.

A check costs ten to a hundred times the call of a small function. In each test every function is checked in its first
`FIRST` calls and from then on in those whose number is a power of two: a loop that repeats itself is checked now and then.
"""

from collections import Counter
from collections.abc import Callable
from functools import wraps
from inspect import isfunction

from beartype import BeartypeConf, beartype

FIRST = 16
calls: Counter[Callable] = Counter()  # of each function in this test

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def sparing(decorate):
    """A decorator that checks every call, as one that checks some: what it makes of classes is left as it is."""

    def decorator(function=None, **options):
        if function is None:
            return lambda f: decorator(f, **options)
        always = decorate(function, **options)
        if not isfunction(function):
            return always

        @wraps(function)
        def sometimes(*args, **kwargs):
            calls[function] += 1
            n = calls[function]
            return (always if n <= FIRST or n & (n - 1) == 0 else function)(*args, **kwargs)

        return sometimes

    return decorator
