"""What a model costs: arithmetic, hardware, and (later) memory, scaling laws and whole plans."""
