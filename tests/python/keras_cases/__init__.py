"""What ranks of a training with Keras do in tests; each process loads one backend. Told what to do in plain values."""
