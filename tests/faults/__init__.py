"""The proof of the stream contract: random histories under faults, recorded, and checked afterwards."""
