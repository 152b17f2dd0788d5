bishare check lorra
