"""Convolutional networks: the baselines before ResNets, ResNets, and what came of them."""
