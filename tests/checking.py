"""The run-time type checker of the tests: beartype, with an int where a float is asked for, as every type checker has it.

A check costs ten to a hundred times the call of a small function. In each test every function is checked in its first
`FIRST` calls and from then on in those whose number is a power of two: a loop that repeats itself is checked now and then.
"""

from collections import Counter
from collections.abc import Callable
from functools import wraps

from beartype import BeartypeConf, beartype

FIRST = 16
calls: Counter[Callable] = Counter()  # of each function in this test

_typed = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function):
    """The function; its arguments are checked in some of its calls."""
    always = _typed(function)

    @wraps(function)
    def sometimes(*args, **kwargs):
        calls[function] += 1
        n = calls[function]
        return (always if n <= FIRST or n & (n - 1) == 0 else function)(*args, **kwargs)

    return sometimes
