"""Checks of the recorded histories, invariants I1 to I17, and clients with bugs that the checks must find."""
