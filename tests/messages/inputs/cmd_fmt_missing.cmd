bishare fmt nowhere.share
