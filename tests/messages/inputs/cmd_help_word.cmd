bishare help
