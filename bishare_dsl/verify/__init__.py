"""Check that an adapter is applied, by its files, a model's module names and a server's answers."""
