bishare explain BS3011
