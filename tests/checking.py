"""The run-time type checker of the tests: beartype, with an int where a float is asked for, as every type checker has it."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
