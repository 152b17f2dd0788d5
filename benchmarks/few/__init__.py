"""Many tasks, few examples each: families of tasks, methods, and what they score."""
