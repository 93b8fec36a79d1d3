"""All settings are in setup.cfg."""
from setuptools import setup
from setuptools.command.egg_info import manifest_maker
manifest_maker.template = ".ci/manifest"  # what a source distribution has beside the package
setup()
