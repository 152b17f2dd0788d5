bishare check ./lorra.share
