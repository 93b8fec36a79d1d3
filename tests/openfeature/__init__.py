"""Tests of the OpenFeature provider, with the real SDK."""
