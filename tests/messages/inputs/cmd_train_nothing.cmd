bishare train
