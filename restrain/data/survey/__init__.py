"""What can be known of a data set before it is trained on: whether it is whole, what is in it, how it will be read."""
