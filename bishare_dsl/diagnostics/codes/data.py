"""BS70x to BS72x: reading, checking and encoding training data."""
