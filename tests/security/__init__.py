"""What the library promises about secrets, strangers and outside bytes, and the fuzzer behind it (docs/security)."""
