"""State machines and generated input, against models."""
