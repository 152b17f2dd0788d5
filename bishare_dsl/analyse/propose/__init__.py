"""From evidence, updates or gradients of modules, to a spec that says who should share what."""
