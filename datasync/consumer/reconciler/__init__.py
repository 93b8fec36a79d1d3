"""The keyed loop: one call for each real difference, until the world is as the store says. Source: contract C20."""
