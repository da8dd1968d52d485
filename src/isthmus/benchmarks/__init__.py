"""Measurements, one question for each file. Each checks its own answer.

Two things are compared in one run, in turn, and by their medians; a report holds the command, the
machine, the versions and the raw samples, so that somebody else can run it again.
"""
