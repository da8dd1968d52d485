"""A runtime: one device with the models, guests and actors on it, and what callers tell it."""

from isthmus.runtime.runtime import Runtime

__all__ = ["Runtime"]
