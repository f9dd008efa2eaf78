"""edged: the machines of one home hold one language model together."""

__version__ = "0.1.0"

PROTOCOL_VERSION = 1
"""Raised whenever two daemons of different versions could misunderstand each other."""
