"""The command line: a file for each command. ``main`` is its entry, ``commands`` lists them."""
