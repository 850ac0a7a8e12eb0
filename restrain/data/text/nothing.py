"""The number that stands where there is no token."""

NOTHING = -1
