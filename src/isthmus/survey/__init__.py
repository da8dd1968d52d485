"""A survey of the library's architectures: a tiny model of each, and what holds of it here."""
