"""Where agents are kept: a folder, or an object store."""
