"""A language server for specs, built on the compiler's front end."""
