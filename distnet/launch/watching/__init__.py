"""A job as its servers see it: their counters, asked for now and then, and what there is to say about them."""
