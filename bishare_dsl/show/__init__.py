"""Tables, comparisons and pictures of plans, without torch and without files."""
