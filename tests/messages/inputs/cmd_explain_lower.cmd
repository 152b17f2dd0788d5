bishare explain bs301
