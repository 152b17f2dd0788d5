bishare explain 301
