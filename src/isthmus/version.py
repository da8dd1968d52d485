"""The version of this package, from which its distribution is named."""

VERSION = "0.2.0"
