"""The transforms that bishare ships, one in each file; `bishare_dsl.transforms.registry` lists them."""
