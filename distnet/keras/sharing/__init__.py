"""How a worker's share is taken of each kind of data that Keras trains on, one file a kind."""
