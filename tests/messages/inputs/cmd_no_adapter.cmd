bishare inspect nowhere
