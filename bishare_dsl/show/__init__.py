"""Plans to look at: tables, comparisons, pictures. No torch, no files."""
