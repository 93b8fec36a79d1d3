"""The tests of datasync. A package, and so is every folder below, so that ``from tests.conftest import take`` works."""
