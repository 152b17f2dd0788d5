bishare inspect .
