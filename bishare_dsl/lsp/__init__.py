"""A language server: what the front end knows of a spec, while somebody writes it in an editor."""
