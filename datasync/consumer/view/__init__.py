"""The live mapping: values of the keys under some prefixes, kept up to date. Source: contract C20."""
