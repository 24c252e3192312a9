"""The limits of this folder, with their units."""

CONFIG_BYTES = 8 << 10
"""Bytes of the configuration file.  tomllib needs 12 s for a dotted key of 64 kB, and 0.25 s for
one of 8 kB: its time grows with the square of the length."""
