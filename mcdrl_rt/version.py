"""The package's version, in a module of its own so that no part needs the package's top."""

__version__ = "0.1.0"
